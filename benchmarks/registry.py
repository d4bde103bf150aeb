"""The registry that every server under test stands in front of.

A corpus is a directory with `index/` and `crates/`, laid out like crates.io's own:

    index/<prefix>/<name>                        one JSON line per version
    crates/<name>/<name>-<version>.crate

and a workload is a directory with a `Cargo.toml` that resolves inside it. Both may be given. If
they are not, the directory `build/benchmarks/` is looked into, and if there is none either, a
registry is made here: a graph as wide and as deep as that of an ordinary service, with crates that
do not compress. It is the same at every run.

To either, `lay_out` adds the objects that are asked for one at a time under load: index files and
crates of round sizes. Their checksums are right, since a server may look.
"""

import gzip
import hashlib
import io
import json
import random
import shutil
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DEFAULT_PLACE: Final = Path("build/benchmarks")
KILOBYTE: Final = 1000
_VERSION: Final = "1.0.0"
_LEVELS: Final = (6, 14, 22, 28, 30, 26, 20, 12, 6)
_TOWARDS_NEXT: Final = 3


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the registry and the package to resolve come from; None is made here."""

    corpus: Path | None
    workload: Path | None


@dataclass(frozen=True, slots=True)
class LoadIndex:
    """An index file to ask for under load."""

    key: str
    crate: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class LoadCrate:
    """A crate to ask for under load."""

    key: str
    crate: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Laid:
    """A registry that is ready to be served, and what is in it."""

    root: Path
    workload: Path
    crates: int
    source: str
    digests: dict[str, str]


INDEXES: Final = (
    LoadIndex("index-4k", "bench-index-small", 4 * KILOBYTE),
    LoadIndex("index-150k", "bench-index-large", 150 * KILOBYTE),
)
CRATES: Final = (
    LoadCrate("crate-20k", "bench-crate-small", 20 * KILOBYTE),
    LoadCrate("crate-200k", "bench-crate-middle", 200 * KILOBYTE),
    LoadCrate("crate-5m", "bench-crate-large", 5000 * KILOBYTE),
)


def index_path(name: str) -> str:
    """Return the path of a crate's index file, by cargo's rule of prefixes.

    >>> index_path("serde"), index_path("Log"), index_path("a")
    ('se/rd/serde', '3/l/log', '1/a')
    """
    lowered = name.lower()
    match len(lowered):
        case 1 | 2:
            return f"{len(lowered)}/{lowered}"
        case 3:
            return f"3/{lowered[0]}/{lowered}"
        case _:
            return f"{lowered[:2]}/{lowered[2:4]}/{lowered}"


def crate_path(name: str, version: str = _VERSION) -> str:
    """Return the path of a crate file below the registry."""
    return f"crates/{name}/{name}-{version}.crate"


def find(corpus: Path | None, workload: Path | None) -> Sources:
    """Take what is given, then what lies in the default place; the rest will be made.

    A corpus and a workload belong together: the default place gives both or neither.
    """
    if corpus is not None or workload is not None:
        if corpus is None or workload is None:
            raise SystemExit("--corpus and --workload belong together: give both")
        for place, needed in ((corpus, "index"), (corpus, "crates"), (workload, "Cargo.toml")):
            if not (place / needed).exists():
                raise SystemExit(f"{place} has no {needed}")
        return Sources(corpus.resolve(), workload.resolve())
    corpus, workload = DEFAULT_PLACE / "corpus", DEFAULT_PLACE / "workload"
    if (corpus / "index").is_dir() and (workload / "Cargo.toml").is_file():
        return Sources(corpus.resolve(), workload.resolve())
    return Sources(None, None)


def lay_out(place: Path, sources: Sources) -> Laid:
    """Make the registry below `place`, and a copy of the package that resolves in it."""
    root, workload = place / "registry", place / "workload"
    if sources.corpus is not None and sources.workload is not None:
        shutil.copytree(sources.corpus, root)
        shutil.copytree(sources.workload, workload, ignore=shutil.ignore_patterns("target", ".git"))
        source = "a corpus that was given"
    else:
        _make_registry(root, workload)
        source = "made for the run"
    (workload / "Cargo.lock").unlink(missing_ok=True)
    digests = {each.crate: _add_index(root, each) for each in INDEXES}
    digests |= {each.crate: _add_crate(root, each) for each in CRATES}
    crates = sum(1 for path in (root / "index").rglob("*") if path.is_file())
    return Laid(root, workload, crates - len(digests), source, digests)


def _make_registry(root: Path, workload: Path) -> None:
    """Make a graph of layers in which each crate depends on a few of the next layer."""
    seeded = random.Random(1)
    layers = [
        [f"layer{depth}-crate{number}" for number in range(width)]
        for depth, width in enumerate(_LEVELS)
    ]
    for depth, layer in enumerate(layers):
        below = layers[depth + 1] if depth + 1 < len(layers) else []
        for place, name in enumerate(layer):
            reached = below[place * len(below) // len(layer) :: len(layer)] if below else []
            chosen = {*reached, *seeded.sample(below, min(_TOWARDS_NEXT, len(below)))}
            size = int(seeded.lognormvariate(10.5, 1.0))
            _write(root, name, sorted(chosen), seeded.randbytes(min(size, 1_000_000)))
    (workload / "src").mkdir(parents=True)
    (workload / "src/main.rs").write_text("fn main() {}\n")
    manifest = '[package]\nname = "workload"\nversion = "0.1.0"\nedition = "2021"\n[dependencies]\n'
    manifest += "".join(f'{name} = "1"\n' for name in layers[0])
    (workload / "Cargo.toml").write_text(manifest)


def _write(root: Path, name: str, needs: Iterable[str], filler: bytes) -> None:
    data = _pack(name, {"src/lib.rs": b"", "filler": filler})
    _write_file(root / crate_path(name), data)
    _write_file(root / "index" / index_path(name), _line(name, _VERSION, data, needs))


def _add_index(root: Path, wanted: LoadIndex) -> str:
    """Write an index file of about the size wanted; its newest version has the digest returned."""
    data = _pack(wanted.crate, {"src/lib.rs": b""})
    _write_file(root / crate_path(wanted.crate), data)
    newest = _line(wanted.crate, _VERSION, data, ())
    lines = older = b""
    number = 0
    while len(lines) + len(older) + len(newest) <= wanted.size_bytes:
        lines += older
        other = hashlib.sha256(str(number).encode()).digest()
        older = _line(wanted.crate, f"0.{number}.0", other, ("serde", "libc"))
        number += 1
    _write_file(root / "index" / index_path(wanted.crate), lines + newest)
    return hashlib.sha256(data).hexdigest()


def _add_crate(root: Path, wanted: LoadCrate) -> str:
    data = random.Random(wanted.size_bytes).randbytes(wanted.size_bytes)
    _write_file(root / crate_path(wanted.crate), data)
    _write_file(root / "index" / index_path(wanted.crate), _line(wanted.crate, _VERSION, data, ()))
    return hashlib.sha256(data).hexdigest()


def _line(name: str, version: str, data: bytes, needs: Iterable[str]) -> bytes:
    dependencies: list[dict[str, object]] = [
        {
            "name": need,
            "req": "^1",
            "features": [],
            "optional": False,
            "default_features": True,
            "target": None,
            "kind": "normal",
        }
        for need in needs
    ]
    line = {
        "name": name,
        "vers": version,
        "deps": dependencies,
        "cksum": hashlib.sha256(data).hexdigest(),
        "features": {},
        "yanked": False,
    }
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def _pack(name: str, files: dict[str, bytes]) -> bytes:
    manifest = f'[package]\nname = "{name}"\nversion = "{_VERSION}"\nedition = "2021"\n'
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for path, data in {"Cargo.toml": manifest.encode(), **files}.items():
            entry = tarfile.TarInfo(f"{name}-{_VERSION}/{path}")
            entry.size = len(data)
            entry.mode = 0o644
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _write_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
