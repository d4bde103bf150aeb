"""Where the files of the deployment are, and how they are read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parent.parent.parent
CHART: Final = ROOT / "charts" / "holdfast"
EXAMPLES: Final = tuple(sorted((CHART / "examples").glob("*.yaml")))
ALERTS: Final = CHART / "files" / "alerts.yaml"
DASHBOARD: Final = CHART / "files" / "dashboard.json"
DOCKERFILE: Final = ROOT / "Dockerfile"
SYSTEMD: Final = ROOT / "deploy" / "systemd"

Tree = Mapping[str, Any]


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file that holds one YAML mapping."""
    document = yaml.safe_load(path.read_text())
    assert isinstance(document, dict), path
    return document


def merged(below: Tree, above: Tree) -> dict[str, Any]:
    """Lay one tree of values over another, as Helm does: maps are merged, all else replaced."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merged(old, value) if both else value  # type: ignore[arg-type]
    return result
