"""Real cargo, every version that the machine has, each run in a world of its own.

`toolchains` finds the cargos: rustup's toolchains (called directly, since rustup would look for
them below a HOME that the tests replace), what is on the PATH, and where distributions put theirs.
A version that is found twice is used once; one older than the sparse protocol is left out.

`CargoHome` is one cargo with a CARGO_HOME and an environment that holds nothing of the machine's:
no proxies, no tokens, no configuration. `Project` is a directory with a manifest to run it in.
Waiting between cargo's own retries is cut to milliseconds by the variable that cargo's own tests
use; a `Retry-After` is still obeyed, so scenarios with outages set `retries=0`.
"""

import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Self

_OLDEST_SPARSE: Final = (1, 68)
_SYSTEM_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
_DISTRIBUTIONS: Final = (
    "usr/bin/cargo",
    "usr/bin/cargo-1.*",
    "usr/lib/rust-*/bin/cargo",
    "usr/local/bin/cargo",
    "opt/*/bin/cargo",
)
_RUN_TIMEOUT_SECONDS: Final = 80


@dataclass(frozen=True, slots=True)
class Toolchain:
    """One cargo and the compiler that belongs to it."""

    version: str
    cargo: Path
    rustc: Path

    def __str__(self) -> str:
        return self.version

    @property
    def order(self) -> tuple[int, ...]:
        """The version's numbers, for sorting."""
        return tuple(int(part) for part in self.version.partition("-")[0].split("."))


@cache
def toolchains() -> tuple[Toolchain, ...]:
    """Return every usable cargo of this machine, oldest first, each version once."""
    found: dict[str, Toolchain] = {}
    for cargo in _candidates():
        toolchain = _examine(cargo)
        if toolchain is not None and toolchain.order >= _OLDEST_SPARSE:
            found.setdefault(toolchain.version, toolchain)
    return tuple(sorted(found.values(), key=lambda each: (each.order, each.version)))


def _candidates() -> Iterator[Path]:
    if (rustup := shutil.which("rustup")) is not None:
        for line in _output(rustup, "toolchain", "list").splitlines():
            cargo = _output(rustup, "which", "--toolchain", line.split()[0], "cargo").strip()
            if cargo:
                yield Path(cargo)
    yield from sorted((Path.home() / ".rustup/toolchains").glob("*/bin/cargo"))
    if (on_path := shutil.which("cargo")) is not None:
        yield Path(on_path)
    for pattern in _DISTRIBUTIONS:
        yield from sorted(Path("/").glob(pattern))


def _examine(cargo: Path) -> Toolchain | None:
    words = _output(str(cargo), "-V").split()
    rustc = cargo.with_name(cargo.name.replace("cargo", "rustc"))
    if len(words) < 2 or not rustc.exists():
        return None
    return Toolchain(words[1], cargo, rustc)


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout if done.returncode == 0 else ""


@dataclass(frozen=True, slots=True)
class Run:
    """What one command did."""

    command: str
    code: int
    stdout: str
    stderr: str
    seconds: float

    def succeeded(self) -> Self:
        """Fail the test, showing the output, unless the command succeeded."""
        assert self.code == 0, f"{self} exited with {self.code}\n{self.stdout}\n{self.stderr}"
        return self

    def failed(self) -> str:
        """Fail the test unless the command failed; return what it said."""
        assert self.code != 0, f"{self} succeeded\n{self.stdout}\n{self.stderr}"
        return self.stderr

    def __str__(self) -> str:
        return f"`{self.command}`"


@dataclass(frozen=True, slots=True)
class Project:
    """A package to work on."""

    root: Path

    @classmethod
    def create(cls, root: Path, dependencies: str, *, main: str = "fn main() {}\n") -> Self:
        """Write a binary package; `dependencies` is TOML that follows `[dependencies]`."""
        (root / "src").mkdir(parents=True)
        (root / "src/main.rs").write_text(main)
        (root / "Cargo.toml").write_text(
            '[package]\nname = "app"\nversion = "0.1.0"\nedition = "2021"\n\n'
            f"[dependencies]\n{dependencies}\n"
        )
        return cls(root)

    @property
    def manifest(self) -> str:
        """Cargo.toml as it is now."""
        return (self.root / "Cargo.toml").read_text()

    @property
    def lock(self) -> bytes:
        """Cargo.lock, byte for byte."""
        return (self.root / "Cargo.lock").read_bytes()

    def write_lock(self, content: bytes) -> None:
        """Put a Cargo.lock beside the manifest."""
        (self.root / "Cargo.lock").write_bytes(content)


def replacing_crates_io(index_url: str) -> str:
    """Configure cargo to go to `index_url` for everything that crates.io has."""
    return replacing("crates-io", index_url)


def replacing(source: str, index_url: str, *, canonical_url: str | None = None) -> str:
    """Configure cargo to go to `index_url` for a source, by the registry `through-<source>`.

    `canonical_url` is the address that manifests and lock files know a private registry by.
    """
    lines = [f"[source.{source}]"]
    if canonical_url is not None:
        lines.append(f'registry = "{canonical_url}"')
    lines += [f'replace-with = "through-{source}"', ""]
    lines += [f"[registries.through-{source}]", f'index = "{index_url}"', ""]
    return "\n".join(lines)


def registry(name: str, index_url: str) -> str:
    """Configure cargo to know the registry `name` by its own address."""
    return f'[registries.{name}]\nindex = "{index_url}"\n'


class CargoHome:
    """One cargo with a home that nothing else uses. `config` becomes `$CARGO_HOME/config.toml`."""

    def __init__(
        self,
        toolchain: Toolchain,
        root: Path,
        config: str,
        *,
        retries: int = 3,
        timeout_seconds: int = 20,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.toolchain = toolchain
        self.root = root
        self.config = config
        root.mkdir(parents=True, exist_ok=True)
        (root / "config.toml").write_text(config)
        self._env = {
            "PATH": f"{toolchain.cargo.parent}:{_SYSTEM_PATH}",
            "HOME": str(root),
            "CARGO_HOME": str(root),
            "RUSTC": str(toolchain.rustc),
            "CARGO_TERM_COLOR": "never",
            "CARGO_HTTP_TIMEOUT": str(timeout_seconds),
            "CARGO_NET_RETRY": str(retries),
            "CARGO_INCREMENTAL": "0",
            "CARGO_PROFILE_DEV_DEBUG": "0",
            "__CARGO_TEST_FIXED_RETRY_SLEEP_MS": "20",
            **(env or {}),
        }

    def run(self, project: Project, *arguments: str) -> Run:
        """Run `cargo <arguments>` in `project`."""
        started = time.monotonic()
        done = subprocess.run(
            [self.toolchain.cargo, *arguments],
            cwd=project.root,
            env=self._env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_RUN_TIMEOUT_SECONDS,
        )
        seconds = time.monotonic() - started
        command = " ".join(["cargo", *arguments])
        return Run(command, done.returncode, done.stdout, done.stderr, seconds)

    def crate_files(self) -> dict[str, bytes]:
        """Return the downloaded `.crate` files by name."""
        return {path.name: path.read_bytes() for path in self.root.glob("registry/cache/*/*.crate")}
