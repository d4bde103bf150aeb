"""What the chart refuses: each refusal names the value and says what to do."""

from typing import Any, Final

import pytest

from tests.deploy.helm import Helm, Refused
from tests.deploy.places import merged
from tests.deploy.release import EVERYTHING, environment

INDEX: Final = "sparse+https://packages.example.com/index/"
TOKEN: Final = {"file": "/run/secrets/holdfast/company-token"}


def company(**keys: object) -> dict[str, Any]:
    """Return values with one upstream, and no registry that says who may read it."""
    return {"config": {"upstreams": {"company": {"index": INDEX, **keys}}}}


REFUSALS: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "no image": ({"image": {"repository": ""}}, "there is no published image"),
    "two processes on one cache": (
        {"replicas": 2, "persistence": {"cache": {"existingClaim": "one"}}},
        r"cannot share persistence\.cache\.existingClaim",
    ),
    "two processes on one state": (
        {"replicas": 2, "persistence": {"state": {"existingClaim": "one"}}},
        r"cannot share persistence\.state\.existingClaim",
    ),
    "tokens that other replicas do not know": (
        {"replicas": 2, "config": {"registries": {"all": {"access": "token"}}}},
        r"config\.registries\.all\.access is token",
    ),
    "owners that replicas would disagree on": (
        {"replicas": 2, "config": {"registries": {"all": {"upstreams": ["a", "b"]}}}},
        r"config\.registries\.all merges upstreams",
    ),
    "no replica": ({"replicas": 0}, "/replicas"),
    "a cache that fills the node": (
        {"persistence": {"cache": {"enabled": False}}},
        r"write config\.cache\.max_size",
    ),
    "an ingress of which the proxy knows nothing": (
        {"ingress": {"enabled": True, "host": "crates.example.com"}},
        r"config\.server\.trusted_proxies",
    ),
    "a route of which the proxy knows nothing": (
        {"gateway": {"enabled": True, "parentRefs": [{"name": "public"}]}},
        r"config\.server\.trusted_proxies",
    ),
    "an ingress without a host": (
        merged(EVERYTHING, {"ingress": {"host": ""}}),
        r"write ingress\.host",
    ),
    "a route without a gateway": (
        merged(EVERYTHING, {"gateway": {"parentRefs": []}}),
        r"write gateway\.parentRefs",
    ),
    "a place that is the chart's": (
        {"config": {"cache": {"dir": "/data"}}},
        r"config\.cache\.dir is the chart's to set",
    ),
    "a listener that is the chart's": (
        {"config": {"server": {"listen": ["0.0.0.0:80"]}}},
        r"config\.server\.listen is the chart's to set",
    ),
    "a drain that the grace period would not follow": (
        {"config": {"server": {"drain": "5m"}}},
        r"write shutdown\.drainSeconds",
    ),
    "the chart's variables": (
        {"env": [{"name": "HOLDFAST__CACHE__DIR", "value": "/data"}]},
        "/env/0/name",
    ),
    "a token's file that no Secret brings": (
        merged(company(token=TOKEN), {"config": {"registries": {"company": {"access": "open"}}}}),
        r"config\.upstreams\.company\.token\.file is below /run/secrets/holdfast.*existingSecret",
    ),
    "an authority that no Secret brings": (
        company(ca_file="/run/secrets/holdfast/ca.pem"),
        r"config\.upstreams\.company\.ca_file is below /run/secrets/holdfast",
    ),
    "a token's variable that is not set": (
        company(token={"env": "COMPANY_TOKEN"}),
        r"config\.upstreams\.company\.token\.env names a variable that env does not have",
    ),
    "a token that opens a registry to everyone, unsaid": (
        {**company(token=TOKEN), "existingSecret": "tokens"},
        r"config\.registries\.company\.access: .*write access: open",
    ),
    "a token that opens another name of the registry, unsaid": (
        merged(
            {**company(token=TOKEN), "existingSecret": "tokens"},
            {
                "config": {
                    "registries": {
                        "company": {"access": "open"},
                        "other": {"upstreams": ["company"]},
                    }
                }
            },
        ),
        r"config\.registries\.other\.access: upstreams\.company has a token",
    ),
    "a value that there is not": ({"replicaCount": 2}, "replicaCount"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_what_cannot_work_is_refused_by_name(helm: Helm, what: str) -> None:
    values, message = REFUSALS[what]
    with pytest.raises(Refused, match=message):
        helm.objects(values)


def test_the_chart_refuses_all_that_it_sets_itself(helm: Helm) -> None:
    variables = environment(helm.one("StatefulSet", {"tls": {"existingSecret": "pair"}}))
    for variable in variables:
        with pytest.raises(Refused, match="/env/0/name"):
            helm.objects({"env": [{"name": variable, "value": "1"}]})
        if variable != "HOLDFAST_CONFIG":
            section, key = variable.lower().split("__")[1:3]
            with pytest.raises(Refused, match=f"config.{section}.{key} is the chart's to set"):
                helm.objects({"config": {section: {key: "1"}}})
