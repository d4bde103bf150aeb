"""A directory outlives the program that wrote it: forward, one minor step back, and no further.

What is opened here are the bytes that releases have left (`tests/compat/written.py`), by the real
command. Their upstream is a port at which nobody listens, unless a test says otherwise.
"""

import hashlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.compat.readers import READERS
from tests.compat.written import ARCHIVES, GONE, Written, crate_path, publish, unpacked
from tests.world.cargo import CargoHome, Project, replacing_crates_io, toolchains
from tests.world.crates import Package
from tests.world.holdfast import Holdfast
from tests.world.registry import Registry, index_path
from tests.world.server import RegistryServer, bound_socket

FOR_EVER = "3650d"


@pytest.fixture(params=ARCHIVES, ids=lambda archive: archive.name.removesuffix(".tar.gz"))
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Written:
    """A directory that a release has left."""
    root = tmp_path / "holdfast"
    root.mkdir()
    return unpacked(request.param, root)


@contextmanager
def serving(written: Written, index_url: str | None = None) -> Iterator[Holdfast]:
    with bound_socket(0) as nobody:
        dead = f"sparse+http://127.0.0.1:{nobody.getsockname()[1]}/index/"
        with Holdfast(written.cache.parent, config(index_url or dead)) as proxy:
            yield proxy


def config(index_url: str) -> dict[str, object]:
    return {"upstreams": {"crates-io": {"index": index_url, "stale_if_error": FOR_EVER}}}


def refused(written: Written) -> str:
    """Start a proxy that must not start, and a command; return what they said."""
    proxy = Holdfast(written.cache.parent, config("sparse+http://127.0.0.1:1/index/"))
    said = ""
    for command in ("serve", "stats"):
        done = proxy.command(command)
        assert done.code == 3, (command, done.code, done.stderr)
        said = done.stderr
    proxy._reservation.close()
    return said


def contents(*roots: Path) -> dict[str, bytes]:
    return {
        path.as_posix(): path.read_bytes()
        for root in roots
        for path in root.rglob("*")
        if path.is_file()
    }


def has_all_crates(proxy: Holdfast, written: Written) -> None:
    for named, cksum in written.crates.items():
        if not named.startswith(GONE):
            answer = proxy.get(crate_path(named, cksum))
            assert (answer.status, answer.how) == (200, "hit"), named
            assert hashlib.sha256(answer.body).hexdigest() == cksum


def has_all_index_files(proxy: Holdfast, written: Written) -> None:
    for name, digest in written.index.items():
        answer = proxy.get(f"/crates-io/index/{index_path(name)}")
        assert answer.status == 200, name
        assert hashlib.sha256(answer.body).hexdigest() == digest, name


def test_the_archives_are_there_and_each_has_the_rules_of_its_release() -> None:
    versions = [path.name.removeprefix("written-by-").removesuffix(".tar.gz") for path in ARCHIVES]
    assert versions == sorted(READERS)
    assert versions


def test_cargo_gets_all_that_a_release_has_left_though_the_upstream_is_dead(
    written: Written, tmp_path: Path
) -> None:
    with serving(written) as proxy:
        home = CargoHome(
            toolchains()[-1], tmp_path / "home", replacing_crates_io(proxy.index_url())
        )
        project = Project.create(tmp_path / "project", written.dependencies)
        project.write_lock(written.lock)
        home.run(project, "fetch", "--locked").succeeded()
        fetched = {hashlib.sha256(data).hexdigest() for data in home.crate_files().values()}
        assert fetched == {
            cksum for named, cksum in written.crates.items() if not named.startswith(GONE)
        }
        has_all_index_files(proxy, written)
        assert f"removed      {GONE} of crates-io" in proxy.command("stats").stdout
        verified = proxy.command("verify").succeeded()
        assert verified.stdout.endswith(" 0 faults\n")
        assert proxy.metric("store_failures_total") == 0
        assert proxy.metric("integrity_failures_total") == 0


def test_a_release_that_was_killed_leaves_nothing_less(written: Written) -> None:
    (written.cache / "clean").unlink()
    with serving(written) as proxy:
        has_all_crates(proxy, written)
        has_all_index_files(proxy, written)


def without_ledger(written: Written) -> None:
    (written.cache / "ledger").unlink()


def with_a_ledger_of_another_schema(written: Written) -> None:
    with closing(sqlite3.connect(written.cache / "ledger")) as ledger:
        ledger.execute("ALTER TABLE blobs ADD COLUMN mood TEXT")
        ledger.execute("PRAGMA user_version = 7")


def with_a_ledger_from_before_there_were_versions(written: Written) -> None:
    with closing(sqlite3.connect(written.cache / "ledger")) as ledger:
        ledger.execute("PRAGMA user_version = 0")
        ledger.execute("DROP TABLE named")


def without_format(written: Written) -> None:
    (written.cache / "format").unlink()


def one_minor_step_ahead(written: Written) -> None:
    (written.cache / "format").write_text("1.1\n")
    (written.cache / "of-tomorrow").write_bytes(b"theirs")
    with closing(sqlite3.connect(written.cache / "ledger")) as ledger:
        ledger.execute("CREATE TABLE tomorrow (x)")


def without_state(written: Written) -> None:
    shutil.rmtree(written.state)


CHANGES = (
    without_ledger,
    with_a_ledger_of_another_schema,
    with_a_ledger_from_before_there_were_versions,
    without_format,
    one_minor_step_ahead,
    without_state,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_all_is_served_all_the_same(written: Written, change: Callable[[Written], None]) -> None:
    change(written)
    ahead = (written.cache / "of-tomorrow").exists()
    with serving(written) as proxy:
        has_all_crates(proxy, written)
        has_all_index_files(proxy, written)
    assert (written.cache / "of-tomorrow").exists() == ahead
    assert (written.cache / "format").read_text() == ("1.1\n" if ahead else "1\n")


def test_index_rows_of_another_version_are_asked_for_again_and_crates_are_kept(
    written: Written,
) -> None:
    with closing(sqlite3.connect(written.cache / "index" / "cache.db")) as index:
        for rowid, value in index.execute("SELECT rowid, value FROM Cache").fetchall():
            later = value[:4] + bytes([2]) + value[5:]
            index.execute("UPDATE Cache SET value = ? WHERE rowid = ?", (later, rowid))
        index.commit()
    registry = Registry()
    publish(registry)
    with RegistryServer(registry) as upstream, serving(written, upstream.index_url) as proxy:
        has_all_crates(proxy, written)
        has_all_index_files(proxy, written)
        assert upstream.count("/crates/*") == 0
        assert upstream.count("/index/*") >= len(written.index)
        assert proxy.metric("integrity_failures_total") == 0


@pytest.mark.parametrize("found", ["2\n", "1.2\n", "", "garbage\n", "\0\0"])
def test_a_cache_of_a_format_that_we_do_not_know_is_left_as_it_is(
    written: Written, found: str
) -> None:
    (written.cache / "format").write_text(found)
    before = contents(written.cache, written.state)
    assert "nothing was touched" in refused(written)
    assert contents(written.cache, written.state) == before


def test_a_state_that_is_too_new_is_left_as_it_is_and_nothing_is_served(written: Written) -> None:
    with closing(sqlite3.connect(written.state / "state.db")) as state:
        state.execute("PRAGMA user_version = 99")
    before = contents(written.state)
    assert "schema version 99" in refused(written)
    assert contents(written.state) == before


def test_what_this_one_writes_the_release_before_it_can_read(written: Written) -> None:
    registry = Registry()
    publish(registry)
    registry.delete(GONE)
    registry.publish(Package("novel"), Package("a", "1.1.0"))
    release = READERS[written.version]
    assert list(release.refusals(written.cache, written.state)) == []
    before = contents(written.cache, written.state)
    with RegistryServer(registry) as upstream, serving(written, upstream.index_url) as proxy:
        has_all_crates(proxy, written)
        for name, vers in (("novel", "1.0.0"), ("a", "1.1.0")):
            cksum = registry.release(name, vers).cksum
            assert proxy.get(crate_path(f"{name} {vers}", cksum)).status == 200
        registry.delete("novel")
        proxy.command("purge", "--registry", "crates-io", "--soft", "novel").succeeded()
        assert proxy.get(f"/crates-io/index/{index_path('novel')}").status == 404
    assert contents(written.cache, written.state) != before
    assert list(release.refusals(written.cache, written.state)) == []
