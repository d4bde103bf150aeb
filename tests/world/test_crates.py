"""The packages themselves: their index lines letter by letter, and real cargo's judgement.

Cargo is pointed straight at the registry here, with nothing in between.
"""

import zlib
from pathlib import Path

import pytest

from tests.world.cargo import CargoHome, Project, Toolchain, registry, replacing_crates_io
from tests.world.crates import Dependency, Package, crate_file, index_line, many_versions
from tests.world.registry import Registry
from tests.world.server import RegistryServer


def test_index_line_is_written_as_crates_io_writes_it() -> None:
    package = Package(
        "demo",
        "2.0.0",
        deps=(
            Dependency("zlib-ng", rename="zlib", optional=True, features=("std",)),
            Dependency("cc", kind="build", target="cfg(unix)", default_features=False),
            Dependency("inner", registry="https://example.com/index"),
        ),
        features={"default": ("fast",), "fast": ()},
        features2={"fancy": ("dep:zlib",)},
        links="z",
        rust_version="1.70",
        pubtime="2026-01-02T03:04:05Z",
    )
    assert index_line(package, "ab" * 32).decode() == (
        '{"name":"demo","vers":"2.0.0","deps":['
        '{"name":"cc","req":"^1","features":[],"optional":false,"default_features":false,'
        '"target":"cfg(unix)","kind":"build"},'
        '{"name":"inner","req":"^1","features":[],"optional":false,"default_features":true,'
        '"target":null,"kind":"normal","registry":"https://example.com/index"},'
        '{"name":"zlib","req":"^1","features":["std"],"optional":true,"default_features":true,'
        '"target":null,"kind":"normal","package":"zlib-ng"}],'
        f'"cksum":"{"ab" * 32}","features":{{"default":["fast"],"fast":[]}},'
        '"features2":{"fancy":["dep:zlib"]},"yanked":false,"links":"z","rust_version":"1.70",'
        '"pubtime":"2026-01-02T03:04:05Z","v":2}\n'
    )


def test_the_same_declaration_always_has_the_same_bytes() -> None:
    padded = Package("padded", padding_bytes=100_000)
    assert crate_file(padded) == crate_file(padded)
    assert len(zlib.compress(crate_file(padded))) > 100_000
    assert crate_file(padded) != crate_file(Package("padded", "1.0.1", padding_bytes=100_000))


def test_cargo_builds_every_kind_of_dependency(
    toolchain: Toolchain, registry: Registry, upstream: RegistryServer, tmp_path: Path
) -> None:
    registry.publish(
        Package("tool", files={"build.rs": "fn main() {}"}),
        Package("fancy-name", "1.2.3+build.7"),
        Package("opt"),
        Package("windows-only"),
        Package(
            "middle",
            deps=(
                Dependency("tool", kind="build"),
                Dependency("fancy-name", rename="plain"),
                Dependency("opt", optional=True),
                Dependency("windows-only", target="cfg(windows)"),
                Dependency("never", kind="dev"),
            ),
            features2={"more": ("dep:opt",)},
            links="middle",
            rust_version="1.60",
            pubtime="2026-01-01T00:00:00Z",
            files={
                "build.rs": 'fn main() { assert_eq!(tool::version(), "1.0.0"); }\n',
                "src/lib.rs": (
                    "pub fn all() -> String {"
                    ' format!("{} {}", plain::version(), opt::version()) }\n'
                ),
            },
        ),
    )
    registry.publish_listed(*many_versions("never", 20))
    home = CargoHome(toolchain, tmp_path / "home", replacing_crates_io(upstream.index_url))
    project = Project.create(
        tmp_path / "app",
        'middle = { version = "1", features = ["more"] }',
        main='fn main() { assert_eq!(middle::all(), "1.2.3+build.7 1.0.0"); }\n',
    )
    home.run(project, "run").succeeded()
    assert b'name = "windows-only"' in project.lock
    assert b"127.0.0.1" not in project.lock


@pytest.mark.parametrize(
    ("dl", "path"),
    [
        ("{base}/dl", "/dl/Cased-Name/1.0.0+b.1/download"),
        ("{base}/dl/", "/dl//Cased-Name/1.0.0+b.1/download"),
        ("{base}/{crate}/{version}.tgz", "/Cased-Name/1.0.0+b.1.tgz"),
        ("{base}/{prefix}/{crate}-{version}", "/Ca/se/Cased-Name-1.0.0+b.1"),
        ("{base}/{lowerprefix}/{crate}-{version}", "/ca/se/Cased-Name-1.0.0+b.1"),
        ("{base}/by-hash/{sha256-checksum}", "/by-hash/{cksum}"),
        ("{base}/get?name={crate}&v={version}", "/get?name=Cased-Name&v=1.0.0+b.1"),
    ],
)
def test_every_dl_template_means_to_us_what_it_means_to_cargo(
    toolchain: Toolchain, tmp_path: Path, dl: str, path: str
) -> None:
    registry = Registry(dl=dl)
    registry.publish(Package("Cased-Name", "1.0.0+b.1"))
    cksum = registry.release("Cased-Name", "1.0.0+b.1").cksum
    with RegistryServer(registry) as server:
        home = CargoHome(toolchain, tmp_path / "home", replacing_crates_io(server.index_url))
        home.run(Project.create(tmp_path / "app", 'Cased-Name = "1"'), "fetch").succeeded()
        assert server.requests()[-1].target == path.format(cksum=cksum)
    assert home.crate_files() == {
        "Cased-Name-1.0.0+b.1.crate": registry.crate("Cased-Name", "1.0.0+b.1")
    }


def test_cargo_gives_the_token_that_the_registry_wants(
    toolchain: Toolchain, tmp_path: Path
) -> None:
    private = Registry(token="secret")
    private.publish(Package("inner"))
    with RegistryServer(private) as server:
        home = CargoHome(
            toolchain,
            tmp_path / "home",
            registry("company", server.index_url),
            env={
                "CARGO_REGISTRIES_COMPANY_TOKEN": "secret",
                "CARGO_REGISTRY_GLOBAL_CREDENTIAL_PROVIDERS": "cargo:token",
            },
        )
        project = Project.create(
            tmp_path / "app", 'inner = { version = "1", registry = "company" }'
        )
        home.run(project, "fetch").succeeded()
    assert server.index_url.encode() in project.lock
