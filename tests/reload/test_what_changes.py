"""SIGHUP and a real process: what takes effect, and what is refused."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Launch
from tests.reload.conftest import COMPANY_LEAF, LEAF, LOOKS, TOKEN, Run, crate_url
from tests.world import holdfast
from tests.world.certificates import Authority
from tests.world.crates import Package
from tests.world.holdfast import Holdfast
from tests.world.registry import Registry
from tests.world.server import RegistryServer

# What takes effect


def test_freshness_changes_for_what_is_held_already(
    registry: Registry, run: Callable[..., Run]
) -> None:
    one = run(upstreams={"crates-io": {"fresh_for": "1h"}})
    assert one.proxy.get(LEAF).how == "miss"
    registry.publish(Package("leaf", "1.1.0"))
    assert b"1.1.0" not in one.proxy.get(LEAF).body
    one.write(upstreams={"crates-io": {"fresh_for": "0s", "stale_while_revalidate": "0s"}})
    one.reload("upstreams.crates-io.fresh_for", "upstreams.crates-io.stale_while_revalidate")
    assert b"1.1.0" in one.proxy.get(LEAF).body
    registry.publish(Package("leaf", "1.2.0"))
    one.write(upstreams={"crates-io": {"fresh_for": "0s", "stale_while_revalidate": "1h"}})
    one.reload("upstreams.crates-io.stale_while_revalidate")
    assert one.proxy.get(LEAF).how == "stale"


def test_how_long_an_outage_is_bridged_changes_in_the_middle_of_one(
    upstream: RegistryServer, run: Callable[..., Run]
) -> None:
    terms = {"fresh_for": "0s", "stale_while_revalidate": "0s"}
    one = run(upstreams={"crates-io": terms})
    assert one.proxy.get(LEAF).status == 200
    upstream.stop()
    assert one.proxy.get(LEAF).how == "stale"
    one.write(upstreams={"crates-io": {**terms, "stale_if_error": "0s"}})
    one.reload("upstreams.crates-io.stale_if_error")
    assert one.proxy.get(LEAF).status == 503
    one.write(upstreams={"crates-io": terms})
    one.reload("upstreams.crates-io.stale_if_error")
    assert one.proxy.get(LEAF).how == "stale"


def test_limits_on_what_an_upstream_may_send(registry: Registry, run: Callable[..., Run]) -> None:
    registry.publish(
        *(Package(name, padding_bytes=50_000) for name in ("first", "second", "third"))
    )
    one = run(limits={"index": "10B", "crate": "1MiB"})
    assert one.proxy.get("/crates-io/index/fi/rs/first").status == 502
    one.write(limits={"crate": "1KiB"})
    one.reload("limits.index", "limits.crate")
    assert one.proxy.get("/crates-io/index/fi/rs/first").status == 200
    assert one.proxy.get(crate_url("first")).status == 502
    one.write()
    one.reload("limits.crate")
    assert one.proxy.get(crate_url("second")).body == registry.crate("second", "1.0.0")
    # The store has been told too: a larger index file is kept, and there after a restart.
    one.proxy.restart()
    assert one.proxy.get("/crates-io/index/fi/rs/first").how == "hit"


@pytest.mark.parametrize(
    ("key", "tight", "wide"),
    [("max_size", "8KiB", "1GiB"), ("min_free", "99.99%", "0B")],
)
def test_limits_on_what_the_cache_may_hold(
    registry: Registry, run: Callable[..., Run], key: str, tight: str, wide: str
) -> None:
    names = ("first", "second", "third")
    registry.publish(*(Package(name, padding_bytes=50_000) for name in names))
    one = run(cache={key: tight})
    assert one.proxy.get(crate_url("first")).how == "bypass"
    one.write(cache={key: wide})
    one.reload(f"cache.{key}")
    assert one.proxy.get(crate_url("second")).how == "miss"
    one.write(cache={key: tight})
    one.reload(f"cache.{key}")
    assert one.proxy.get(crate_url("third")).how == "bypass"


def test_a_default_size_of_the_cache_is_worked_out_anew(run: Callable[..., Run]) -> None:
    one = run(cache={"max_size": "1MiB"})
    assert limit_of_the_cache(one.proxy) == 2**20
    one.write()
    one.reload("cache.max_size")
    assert limit_of_the_cache(one.proxy) > 2**20


def limit_of_the_cache(proxy: Holdfast) -> int:
    limit = json.loads(proxy.command("stats", "--json").succeeded().stdout)["stored"]["blobs"][
        "limit_bytes"
    ]
    assert isinstance(limit, int)
    return limit


def test_the_level_of_the_log_and_the_line_that_says_so(run: Callable[..., Run]) -> None:
    one = run()
    one.proxy.get(LEAF)
    assert '"level": "debug"' not in one.proxy.stderr
    one.write(log={"level": "debug"})
    one.reload("log.level")
    one.proxy.get(LEAF)
    one.proxy.has_logged("200 hit crates-io index leaf")
    one.write(log={"level": "error"})
    one.reload("log.level")
    one.proxy.get(LEAF)
    # Nothing is said at this level: what has taken effect shows in the metrics alone.
    one.write(log={"level": "error"}, limits={"crate": "1MiB"})
    before = one.proxy.metric("config_last_reload_success_timestamp_seconds")
    os.kill(one.proxy.pid, signal.SIGHUP)
    until(one.proxy, lambda now: now > before, "config_last_reload_success_timestamp_seconds")
    one.write(log={"level": "info"}, limits={"crate": "1MiB"})
    one.reload("log.level")
    assert one.proxy.stderr.count("200 hit crates-io index leaf") == 1


def until(proxy: Holdfast, holds: Callable[[float], bool], metric: str) -> None:
    for _ in range(LOOKS):
        if holds(proxy.metric(metric)):
            return
    raise AssertionError(f"holdfast_{metric} does not change")


def test_a_token_from_another_variable_is_sent_with_the_next_request(
    company: RegistryServer, run: Callable[..., Run]
) -> None:
    one = run(
        env={"OLD": "Bearer of-last-year", "NEW": TOKEN},
        company=company,
        upstreams={"company": {"token": {"env": "OLD"}}},
    )
    assert one.proxy.get(COMPANY_LEAF).status == 503
    one.write(upstreams={"company": {"token": {"env": "NEW"}}})
    one.reload("upstreams.company.token")
    assert one.proxy.get(COMPANY_LEAF).status == 200
    assert company.requests()[-1].headers["authorization"] == TOKEN
    one.write(upstreams={"company": {"fresh_for": "0s"}})
    one.reload("upstreams.company.token", "upstreams.company.fresh_for")
    one.proxy.get(COMPANY_LEAF)
    assert "authorization" not in company.requests()[-1].headers
    assert "-year" not in one.proxy.stderr


@pytest.mark.parametrize("content", ["", None, "two\nlines"])
def test_a_token_whose_file_is_empty_or_gone_stays(
    company: RegistryServer, run: Callable[..., Run], tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    token = {"token": {"file": str(file)}, "fresh_for": "0s"}
    one = run(company=company, upstreams={"company": token})
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    one.write(upstreams={"company": token}, limits={"crate": "1B"})
    one.refuse("not reloaded: upstreams.company.token: the file ")
    assert one.proxy.get(COMPANY_LEAF).status == 200
    file.write_text(f"{TOKEN}\n")
    one.reload("limits.crate")
    assert one.proxy.metric("config_last_reload_successful") == 1


def test_an_authority_is_trusted_once_its_file_says_so(
    registry: Registry, run: Callable[..., Run], tmp_path: Path, authority: Authority
) -> None:
    ca_file = tmp_path / "ca.pem"
    Authority().issuer.cert_pem.write_to_path(ca_file)
    terms = {"ca_file": str(ca_file), "fresh_for": "0s"}
    with RegistryServer(registry, tls=authority.serving(tmp_path)) as company:
        one = run(company=company, upstreams={"company": terms})
        assert one.proxy.get(COMPANY_LEAF).status == 503
        authority.issuer.cert_pem.write_to_path(ca_file)
        one.write(upstreams={"company": terms})
        one.reload("upstreams.company.ca_file")
        assert one.proxy.get(COMPANY_LEAF).status == 200
        ca_file.write_text("no certificate")
        one.refuse(f"not reloaded: upstreams.company.ca_file: {ca_file}: no certificates in PEM")
        assert one.proxy.get(COMPANY_LEAF).status == 200
        # What is not trusted any more is not reached over a connection that is still open.
        one.write(upstreams={"company": {"fresh_for": "0s", "stale_if_error": "0s"}})
        one.reload("upstreams.company.stale_if_error", "upstreams.company.ca_file")
        assert one.proxy.get(COMPANY_LEAF).status == 503


def test_another_certificate_of_ours_is_shown(
    registry: Registry, run: Callable[..., Run], tmp_path: Path, authority: Authority
) -> None:
    tls = authority.serving(tmp_path / "theirs")
    authority.demand(tls)
    authority.issuer.cert_pem.write_to_path(tmp_path / "ca.pem")
    stranger, ours = Authority().issue(tmp_path / "a"), authority.issue(tmp_path / "b")
    terms = {"ca_file": str(tmp_path / "ca.pem"), "fresh_for": "0s", "stale_if_error": "0s"}
    with RegistryServer(registry, tls=tls) as company:
        one = run(
            company=company,
            upstreams={
                "company": {
                    **terms,
                    "client_cert": stranger["certificate"],
                    "client_key": stranger["key"],
                }
            },
        )
        assert one.proxy.get(COMPANY_LEAF).status == 503
        mixed = {**terms, "client_cert": ours["certificate"], "client_key": stranger["key"]}
        one.write(upstreams={"company": mixed})
        one.refuse(f"not reloaded: upstreams.company.client_key: {stranger['key']}: not the key")
        Path(stranger["key"]).write_bytes(Path(ours["key"]).read_bytes())
        one.reload("upstreams.company.client_cert", "upstreams.company.client_key")
        assert one.proxy.get(COMPANY_LEAF).status == 200


# What is refused


def test_what_needs_a_restart_is_named_and_nothing_is_changed(
    registry: Registry, run: Callable[..., Run]
) -> None:
    one = run()
    assert one.proxy.get(LEAF).status == 200
    registry.publish(Package("leaf", "1.1.0"))
    one.write(
        server={"contact": "ops@example.com", "drain": "5s"},
        cache={"memory": "1MiB"},
        log={"level": "debug"},
        limits={"index": "1B"},
        upstreams={"crates-io": {"fresh_for": "0s", "connections": 3}},
    )
    one.refuse(
        '"not reloaded, a restart is needed:'
        ' server.contact, cache.memory, upstreams.crates-io.connections"'
    )
    # Were freshness, the limit or the level another, this would not be a hit.
    assert one.proxy.get(LEAF).how == "hit"
    assert "debug" not in one.proxy.stderr
    one.write()
    one.reload()


def test_upstreams_that_come_need_a_restart(
    company: RegistryServer, run: Callable[..., Run]
) -> None:
    one = run()
    one.config["upstreams"]["company"] = {"index": company.index_url}
    one.write()
    one.refuse('"not reloaded, a restart is needed: upstreams.company"')
    assert one.proxy.get(COMPANY_LEAF).status == 400


def test_an_invalid_configuration_changes_nothing_and_each_error_is_a_line_with_its_key(
    run: Callable[..., Run],
) -> None:
    one = run()
    one.write(limits={"index": "large", "crate": "1KiB"}, log={"levle": "debug"})
    one.refuse("not reloaded: log.levle: there is no such key; did you mean level?")
    said = [line for line in one.proxy.log() if "not reloaded" in str(line["message"])]
    assert {line["key"] for line in said} == {"limits.index", "log.levle"}
    assert {line["level"] for line in said} == {"error"}
    checked = one.proxy.command("config", "check").stderr.splitlines()
    assert checked == [str(line["message"]).replace("not reloaded", "holdfast") for line in said]
    one.write()
    one.reload()


def test_a_file_that_cannot_be_read_changes_nothing(run: Callable[..., Run]) -> None:
    one = run(limits={"crate": "1MiB"})
    one.proxy.config_file.unlink()
    one.refuse("holdfast.toml: the file cannot be read: No such file or directory")
    one.proxy.config_file.mkdir()
    one.refuse("holdfast.toml: the file cannot be read: Is a directory")
    one.proxy.config_file.rmdir()
    one.write(limits={"crate": "1MiB"})
    one.reload()


def test_the_environment_and_the_options_are_laid_over_the_file_again(
    upstream: RegistryServer,
    launch: Launch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., Run],
) -> None:
    offline = tmp_path / "offline"
    offline.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "from proxy.cli import main\n"
        "sys.argv.append('--offline')\n"
        "main()\n"
    )
    offline.chmod(0o755)
    monkeypatch.setattr(holdfast, "COMMAND", str(offline))
    one = run(env={"HOLDFAST__LOG__LEVEL": "info"})
    one.write(log={"level": "debug"}, limits={"crate": "1MiB"})
    one.reload("limits.crate")
    assert one.proxy.get(LEAF).status == 503
    assert upstream.count() == 0
