"""What the objects of one house share, and what they do not."""

from pathlib import Path

from proxy import compose
from proxy.adapters.upstream import HttpUpstream
from proxy.config import Overrides, load
from tests.world.certificates import Authority
from tests.world.holdfast import toml


async def test_upstreams_that_trust_the_same_share_what_was_loaded_for_it(tmp_path: Path) -> None:
    ca_file = tmp_path / "ca.pem"
    Authority().issuer.cert_pem.write_to_path(ca_file)
    upstreams: dict[str, dict[str, object]] = {
        "company": {"index": "sparse+https://127.0.0.1:1/company/"},
        "other": {"index": "sparse+https://127.0.0.1:1/other/", "ca_file": str(ca_file)},
        "team": {"index": "sparse+https://127.0.0.1:1/team/", "ca_file": str(ca_file)},
    }
    file = tmp_path / "holdfast.toml"
    file.write_text(
        toml({"cache": {"dir": "cache"}, "state": {"dir": "state"}, "upstreams": upstreams})
    )
    async with compose.house(load(file, {}, Overrides()), serving=False) as rooms:
        contexts = {}
        for name, registry in rooms.registries.items():
            upstream = registry.source.upstream
            assert isinstance(upstream, HttpUpstream)
            contexts[name] = upstream._egress._tls
    assert contexts["crates-io"] is contexts["company"]
    assert contexts["other"] is contexts["team"]
    assert contexts["company"] is not contexts["other"]
