"""A small ecosystem that has one of everything: what real cargo is tried with.

Versions, yanks and publication times; features in both notations; dependencies that are renamed,
optional, for one platform, for building, for tests; names of one, two and three letters, in mixed
case, with both separators; a version with build metadata; an index file of three thousand versions;
a crate of ten megabytes; a binary to install.

`DEPENDENCIES` uses all of it and `MAIN` proves, when it runs, that the right versions were built.
"""

from dataclasses import replace
from typing import Final

from tests.world.crates import Dependency, Package, many_versions
from tests.world.registry import Registry

CROWD: Final = 3000
HEAVY_BYTES: Final = 10_000_000

DEPENDENCIES: Final = """\
facade = { version = "1", features = ["full"] }
crowded = "0.60"
heavy = "1"
Mixed_Case = "1"
a = "1"
bc = "1"
def = "1"
yanking = "1"
"""

MAIN: Final = """\
fn main() {
    let found = [facade::all(), crowded::version().into(), yanking::version().into()];
    println!("{}", found.join(" "));
}
"""

EXPECTED_OUTPUT: Final = "1.4.0 with plumbing 2.1.0 and extras 1.0.0+build.5 0.60.48 1.2.0\n"


def publish_ecosystem(registry: Registry) -> None:
    """Publish everything that `DEPENDENCIES` needs, and more versions than it needs."""
    registry.publish(
        *(Package(name) for name in ("Mixed_Case", "a", "bc", "def", "for-windows", "for-tests")),
        Package("heavy", padding_bytes=HEAVY_BYTES),
        Package("extras-long-name", "1.0.0+build.5", features={"std": ()}),
        Package("code-writer", "3.0.0"),
        Package("plumbing", "1.9.0"),
        Package("plumbing", "2.0.0"),
        Package(
            "plumbing",
            "2.1.0",
            deps=(Dependency("code-writer", "^3", kind="build"), Dependency("a")),
            links="plumbing",
            files={"build.rs": 'fn main() { assert_eq!(code_writer::version(), "3.0.0"); }\n'},
        ),
        Package("tool", "0.3.1", deps=(Dependency("plumbing", ">=2.0, <3"),), binary=True),
        Package("tool", "0.3.2", deps=(Dependency("plumbing", ">=2.0, <3"),), binary=True),
    )
    _publish_yanking(registry)
    _publish_crowded(registry)
    _publish_facade(registry)


def _publish_yanking(registry: Registry) -> None:
    times = {"1.0.0": "2025-03-01", "1.1.0": "2025-06-01", "1.2.0": "2025-09-01", "1.3.0": None}
    for vers, day in times.items():
        pubtime = f"{day}T12:00:00Z" if day else None
        registry.publish(Package("yanking", vers, pubtime=pubtime, rust_version="1.60"))
    registry.yank("yanking", "1.1.0")
    registry.yank("yanking", "1.3.0")


def _publish_crowded(registry: Registry) -> None:
    pattern = Package(
        "crowded",
        deps=(Dependency("def"), Dependency("bc", optional=True)),
        features={"default": ("bc",)},
        pubtime="2024-05-06T07:08:09Z",
    )
    crowd = many_versions("crowded", CROWD, pattern)
    registry.publish_listed(*crowd)
    registry.publish(crowd[-2])


def _publish_facade(registry: Registry) -> None:
    facade = Package(
        "facade",
        deps=(
            Dependency("plumbing", "^2", rename="pipes"),
            Dependency("extras-long-name", rename="extras", optional=True),
            Dependency("for-windows", target="cfg(windows)"),
            Dependency("Mixed_Case", target="cfg(unix)", default_features=False),
            Dependency("for-tests", kind="dev"),
        ),
        features={"default": ()},
        features2={"full": ("dep:extras", "extras?/std"), "std": ()},
        files={
            "src/lib.rs": (
                '#[cfg(feature = "full")]\n'
                "pub fn all() -> String {\n"
                "    let extras = extras::version();\n"
                '    format!("{} with plumbing {} and extras {}",\n'
                '        env!("CARGO_PKG_VERSION"), pipes::version(), extras)\n'
                "}\n"
            )
        },
    )
    for minor in range(5):
        registry.publish(replace(facade, vers=f"1.{minor}.0"))
