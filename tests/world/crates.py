"""Packages for the test registries: real `.crate` files and index lines like those of crates.io.

A `Package` is a declaration. From it come two things, always the same bytes for the same
declaration: the `.crate` (a gzipped tar with a manifest and Rust sources that compile at once) and
the index line. The line follows crates.io's own writer: compact JSON, its order of keys, `null`
where it writes `null`, no key where it skips one, dependencies and features sorted, a final
newline. `features2` and `v` appear together.

Nothing here is shared with the proxy: this is the other side's opinion of the format, and a
mistake that both sides share would be seen by cargo.
"""

import gzip
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

Kind = Literal["normal", "build", "dev"]
Features = Mapping[str, Sequence[str]]

CRATES_IO_GIT_INDEX: Final = "https://github.com/rust-lang/crates.io-index"
_KINDS: Final[tuple[Kind, ...]] = ("normal", "build", "dev")
_TABLES: Final[Mapping[Kind, str]] = {
    "normal": "dependencies",
    "build": "build-dependencies",
    "dev": "dev-dependencies",
}


@dataclass(frozen=True, slots=True)
class Dependency:
    """One dependency of a package.

    `name` is the crate's name in its registry; `rename` is what the depending package calls it.
    `registry` is the index address of another registry, as an index line spells it.
    """

    name: str
    req: str = "^1"
    kind: Kind = "normal"
    rename: str | None = None
    optional: bool = False
    target: str | None = None
    features: Sequence[str] = ()
    default_features: bool = True
    registry: str | None = None


@dataclass(frozen=True, slots=True)
class Package:
    """One version of one crate, as its author would declare it.

    `files` adds to (or replaces) what the `.crate` holds; `padding_bytes` adds a file that no
    compression shrinks; `binary` adds a `main.rs`, so that `cargo install` has something to do.
    """

    name: str
    vers: str = "1.0.0"
    deps: Sequence[Dependency] = ()
    features: Features = field(default_factory=dict)
    features2: Features | None = None
    yanked: bool = False
    links: str | None = None
    rust_version: str | None = None
    pubtime: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    padding_bytes: int = 0
    binary: bool = False


def index_line(package: Package, cksum: str) -> bytes:
    """Write the line for `package`, whose `.crate` has the SHA-256 `cksum`, newline included."""
    row: dict[str, object] = {
        "name": package.name,
        "vers": package.vers,
        "deps": [_index_dependency(dep) for dep in _in_index_order(package.deps)],
        "cksum": cksum,
        "features": _index_features(package.features),
    }
    if package.features2 is not None:
        row["features2"] = _index_features(package.features2)
    row["yanked"] = package.yanked
    if package.links is not None:
        row["links"] = package.links
    if package.rust_version is not None:
        row["rust_version"] = package.rust_version
    if package.pubtime is not None:
        row["pubtime"] = package.pubtime
    if package.features2 is not None:
        row["v"] = 2
    return json.dumps(row, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def _in_index_order(deps: Iterable[Dependency]) -> list[Dependency]:
    return sorted(
        deps,
        key=lambda dep: (
            dep.rename or dep.name,
            _KINDS.index(dep.kind),
            dep.req,
            dep.optional,
            dep.target or "",
        ),
    )


def _index_dependency(dep: Dependency) -> dict[str, object]:
    row: dict[str, object] = {
        "name": dep.rename or dep.name,
        "req": dep.req,
        "features": list(dep.features),
        "optional": dep.optional,
        "default_features": dep.default_features,
        "target": dep.target,
        "kind": dep.kind,
    }
    if dep.registry is not None:
        row["registry"] = dep.registry
    if dep.rename is not None:
        row["package"] = dep.name
    return row


def _index_features(features: Features) -> dict[str, list[str]]:
    return {name: list(features[name]) for name in sorted(features)}


def crate_file(package: Package) -> bytes:
    """Build the `.crate` of `package`.

    What is padded is stored, not squeezed: ten megabytes of noise take milliseconds.
    """
    padded = package.padding_bytes > 0
    tarred = io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path, content in _contents(package).items():
            entry = tarfile.TarInfo(f"{package.name}-{package.vers}/{path}")
            entry.size = len(content)
            entry.mode = 0o644
            archive.addfile(entry, io.BytesIO(content))
    return gzip.compress(tarred.getvalue(), compresslevel=0 if padded else 6, mtime=0)


def _contents(package: Package) -> dict[str, bytes]:
    files = {
        "Cargo.toml": manifest(package),
        "src/lib.rs": f'pub fn version() -> &\'static str {{ "{package.vers}" }}\n',
    }
    if package.binary:
        files["src/main.rs"] = (
            f'fn main() {{ println!("{package.name} {{}}", "{package.vers}"); }}\n'
        )
    contents = {path: text.encode() for path, text in {**files, **package.files}.items()}
    if package.padding_bytes:
        noise = random.Random(f"{package.name} {package.vers}")
        contents["padding.bin"] = noise.randbytes(package.padding_bytes)
    return contents


def manifest(package: Package) -> str:
    """Write `package`'s Cargo.toml as `cargo package` would normalise it."""
    lines = [
        "[package]",
        'edition = "2021"',
        f"name = {_toml(package.name)}",
        f"version = {_toml(package.vers)}",
        'description = "made for a test"',
        'license = "MIT"',
    ]
    if package.links is not None:
        lines += [f"links = {_toml(package.links)}", 'build = "build.rs"']
    if package.rust_version is not None:
        lines.append(f"rust-version = {_toml(package.rust_version)}")
    for dep in package.deps:
        lines += ["", *_manifest_dependency(dep)]
    features = {**package.features, **(package.features2 or {})}
    if features:
        lines += ["", "[features]"]
        lines += [f"{name} = {_toml(list(features[name]))}" for name in sorted(features)]
    return "\n".join(lines) + "\n"


def _manifest_dependency(dep: Dependency) -> Iterator[str]:
    table = _TABLES[dep.kind]
    if dep.target is not None:
        table = f"target.'{dep.target}'.{table}"
    yield f"[{table}.{dep.rename or dep.name}]"
    yield f"version = {_toml(dep.req)}"
    if dep.rename is not None:
        yield f"package = {_toml(dep.name)}"
    if dep.optional:
        yield "optional = true"
    if dep.features:
        yield f"features = {_toml(list(dep.features))}"
    if not dep.default_features:
        yield "default-features = false"
    if dep.registry is not None:
        yield f"registry-index = {_toml(dep.registry)}"


def _toml(value: str | list[str]) -> str:
    # A JSON string or array of strings is a TOML one.
    return json.dumps(value)


def sha256(data: bytes) -> str:
    """Return the digest of `data` as `cksum` is written."""
    return hashlib.sha256(data).hexdigest()


def listed_cksum(package: Package) -> str:
    """Return a checksum for a version that is listed in an index and never downloaded."""
    return sha256(f"listed only: {package.name} {package.vers}".encode())


def many_versions(name: str, count: int, like: Package | None = None) -> list[Package]:
    """Declare `count` versions of `name` from 0.1.0 up, each like `like`; every tenth is yanked."""
    pattern = like or Package(name)
    return [
        replace(
            pattern,
            name=name,
            vers=f"0.{1 + number // 50}.{number % 50}",
            yanked=number % 10 == 9,
        )
        for number in range(count)
    ]
