"""What the tests of the deployment share: the places in the tree, and one Helm for all of them.

Helm's own engine and hadolint come as wheels for Linux on x86-64. On another machine the tests that
need them are not collected; all others are.
"""

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from tests.deploy.helm import Helm

collect_ignore_glob = (
    ["test_chart*.py", "test_image_lint.py"] if find_spec("helm_python") is None else []
)


@pytest.fixture(scope="session")
def helm() -> Iterator[Helm]:
    with Helm() as process:
        yield process
