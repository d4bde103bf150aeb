"""What hadolint says of the Dockerfile: nothing."""

import subprocess
import sys
from pathlib import Path

from tests.deploy.places import DOCKERFILE


def test_hadolint_has_no_complaint() -> None:
    command = [str(Path(sys.executable).with_name("hadolint")), "--failure-threshold", "style"]
    done = subprocess.run(
        [*command, str(DOCKERFILE)], capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
