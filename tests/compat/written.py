"""Directories as a released Holdfast left them, kept in the tree as they were.

`python -m tests.compat.written` makes one with the program that is checked out, at a release, and
puts it beside this file as `written-by-<version>.tar.gz`: a cache and a state directory after a
stop in good order, the `Cargo.lock` of a real cargo that was served from them, and `about.json`,
which says what is in them. An archive is never made again: that its bytes are old is what it is
for. Of what a registry can have there is one each, and a name that the upstream has removed.

`unpacked` lays such an archive out for a test.
"""

import gzip
import hashlib
import io
import json
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from proxy.version import VERSION
from tests.world.cargo import CargoHome, Project, replacing_crates_io, toolchains
from tests.world.crates import Dependency, Package
from tests.world.holdfast import Holdfast
from tests.world.registry import Registry, index_path
from tests.world.server import RegistryServer

HERE: Final = Path(__file__).parent
ARCHIVES: Final = tuple(sorted(HERE.glob("written-by-*.tar.gz")))
GONE: Final = "gone"
DEPENDENCIES: Final = """\
facade = { version = "1", features = ["full"] }
Mixed_Case = "1"
a = "1"
heavy = "1"
yanking = "1"
"""

# Bytes of no use after the process, and a name that a file cannot have.
_LEFT_OUT: Final = frozenset({"lock", "control.sock"})
_HEAVY_BYTES: Final = 100_000
_HELD: Final = (
    *("Mixed_Case 1.0.0", "a 1.0.0", "heavy 1.0.0", "extras 1.0.0+build.5"),
    *("yanking 1.0.0", "facade 1.4.0", f"{GONE} 1.0.0"),
)


@dataclass(frozen=True, slots=True)
class Written:
    """An archive laid out below a directory.

    `crates` has the SHA-256 of each crate file by `NAME VERSION`, `index` that of each index file.
    """

    version: str
    cache: Path
    state: Path
    lock: bytes
    dependencies: str
    crates: dict[str, str]
    index: dict[str, str]


def publish(registry: Registry) -> None:
    """Publish what the archives hold."""
    registry.publish(
        Package("Mixed_Case"),
        Package("a"),
        Package("heavy", padding_bytes=_HEAVY_BYTES),
        Package("extras", "1.0.0+build.5", features={"std": ()}),
        Package(GONE),
        Package("yanking", "1.0.0", pubtime="2025-03-01T12:00:00Z", rust_version="1.60"),
        Package("yanking", "1.1.0", pubtime="2025-06-01T12:00:00Z"),
        Package(
            "facade",
            "1.4.0",
            deps=(Dependency("a"), Dependency("extras", rename="more", optional=True)),
            features={"default": ()},
            features2={"full": ("dep:more", "more?/std"), "std": ()},
        ),
    )
    registry.yank("yanking", "1.1.0")


def crate_path(named: str, cksum: str) -> str:
    """Return where a proxy has the crate `NAME VERSION`."""
    name, version = named.split()
    return f"/crates-io/crates/{name}/{version}/{cksum}"


def unpacked(archive: Path, root: Path) -> Written:
    """Lay an archive out below `root`, which must be there."""
    with tarfile.open(archive) as tar:
        tar.extractall(root, filter="data")
    about = json.loads((root / "about.json").read_bytes())
    return Written(
        version=about["version"],
        cache=root / "cache",
        state=root / "state",
        lock=(root / "Cargo.lock").read_bytes(),
        dependencies=about["dependencies"],
        crates=about["crates"],
        index=about["index"],
    )


def write(root: Path) -> None:
    """Have a proxy and a cargo leave behind, below `root`, what goes into an archive."""
    registry = Registry()
    publish(registry)
    crates = {named: registry.release(*named.split()).cksum for named in _HELD}
    names = sorted({named.split()[0].lower() for named in _HELD} - {GONE})
    index = {name: hashlib.sha256(registry.index(name)).hexdigest() for name in names}
    with RegistryServer(registry) as upstream:
        terms = {"index": upstream.index_url, "fresh_for": "0s", "stale_while_revalidate": "0s"}
        with Holdfast(root, {"upstreams": {"crates-io": terms}}) as proxy:
            desk = replacing_crates_io(proxy.index_url())
            project = Project.create(root / "project", DEPENDENCIES)
            CargoHome(toolchains()[-1], root / "home", desk).run(project, "fetch").succeeded()
            for named, cksum in crates.items():
                crate = proxy.get(crate_path(named, cksum))
                assert hashlib.sha256(crate.body).hexdigest() == cksum, named
            registry.delete(GONE)
            assert proxy.get(f"/crates-io/index/{index_path(GONE)}").status == 404
    about = {
        "version": VERSION,
        "dependencies": DEPENDENCIES,
        "crates": crates,
        "index": index,
    }
    (root / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    (root / "Cargo.lock").write_bytes(project.lock)


def pack(root: Path, archive: Path) -> None:
    """Put what `write` left behind below `root` into an archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for top in ("about.json", "Cargo.lock", "cache", "state"):
            for path in sorted([root / top, *(root / top).rglob("*")]):
                if path.name not in _LEFT_OUT:
                    name = path.relative_to(root).as_posix()
                    tar.add(path, name, recursive=False, filter=_anonymous)
    archive.write_bytes(gzip.compress(out.getvalue(), 9, mtime=0))


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def main() -> None:
    """Make the archive of the version that is checked out, unless there is one."""
    archive = HERE / f"written-by-{VERSION}.tar.gz"
    if archive.exists():
        raise SystemExit(f"{archive.name} is there, and its bytes are what it is for")
    with tempfile.TemporaryDirectory(prefix="holdfast-written-") as directory:
        write(Path(directory))
        pack(Path(directory), archive)
    print(f"{archive.name}: {archive.stat().st_size} bytes")  # noqa: T201 - a tool


if __name__ == "__main__":
    main()
