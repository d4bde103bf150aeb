"""The values of the chart: each is explained, is known to the schema, and does something."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import pytest
import yaml

from tests.deploy.helm import IMAGE, Helm, Refused
from tests.deploy.places import CHART, merged, read_yaml

VALUES: Final = CHART / "values.yaml"

# For each value another one than the default, and what has to be there for it to matter.
ENABLED_INGRESS: Final = {
    "config": {"server": {"trusted_proxies": ["10.0.0.0/8"]}},
    "ingress": {"enabled": True, "host": "a.example.com"},
}
ENABLED_GATEWAY: Final = {
    "config": {"server": {"trusted_proxies": ["10.0.0.0/8"]}},
    "gateway": {"enabled": True, "parentRefs": [{"name": "public"}]},
}
MAX_SIZE: Final = {"config": {"cache": {"max_size": "1GiB"}}}
PEER: Final = [{"podSelector": {"matchLabels": {"a": "b"}}}]
CHANGES: Final[dict[str, tuple[object, Mapping[str, Any]]]] = {
    "replicas": (2, {}),
    "image.repository": ("other.example.com/holdfast", {}),
    "image.tag": ("1.2.3", {}),
    "image.digest": ("sha256:" + "0" * 64, {}),
    "image.pullPolicy": ("Always", {}),
    "imagePullSecrets": ([{"name": "pull"}], {}),
    "nameOverride": ("crates", {}),
    "fullnameOverride": ("crates", {}),
    "config": ({"log": {"level": "debug"}}, {}),
    "existingSecret": ("tokens", {}),
    "tls.existingSecret": ("pair", {}),
    "env": ([{"name": "NO_PROXY", "value": "example.com"}], {}),
    "ipFamily": ("both", {}),
    "persistence.cache.enabled": (False, MAX_SIZE),
    "persistence.cache.size": ("7Gi", {}),
    "persistence.cache.storageClass": ("fast", {}),
    "persistence.cache.existingClaim": ("old", {}),
    "persistence.state.enabled": (False, {}),
    "persistence.state.size": ("7Gi", {}),
    "persistence.state.storageClass": ("fast", {}),
    "persistence.state.existingClaim": ("old", {}),
    "extraVolumes": ([{"name": "corp", "configMap": {"name": "corp"}}], {}),
    "extraVolumeMounts": ([{"name": "corp", "mountPath": "/etc/corp"}], {}),
    "resources": ({"limits": {"memory": "3Gi"}}, {}),
    "shutdown.drainSeconds": (7, {}),
    "shutdown.preStopSeconds": (7, {}),
    "startupSeconds": (900, {}),
    "service.type": ("NodePort", {}),
    "service.port": (8081, {}),
    "service.annotations": ({"a": "b"}, {}),
    "ingress.enabled": (False, ENABLED_INGRESS),
    "ingress.className": ("nginx", ENABLED_INGRESS),
    "ingress.annotations": ({"a": "b"}, ENABLED_INGRESS),
    "ingress.host": ("b.example.com", ENABLED_INGRESS),
    "ingress.tls.enabled": (False, ENABLED_INGRESS),
    "ingress.tls.secretName": ("pair", ENABLED_INGRESS),
    "gateway.enabled": (False, ENABLED_GATEWAY),
    "gateway.parentRefs": ([{"name": "other"}], ENABLED_GATEWAY),
    "gateway.hostname": ("b.example.com", ENABLED_GATEWAY),
    "gateway.annotations": ({"a": "b"}, ENABLED_GATEWAY),
    "gateway.timeouts": ({"request": "10m"}, ENABLED_GATEWAY),
    "networkPolicy.enabled": (False, {}),
    "networkPolicy.clients": (PEER, {}),
    "networkPolicy.metrics": (PEER, {}),
    "networkPolicy.egressPorts": ([443, 8443], {}),
    "networkPolicy.extraEgress": ([{"to": PEER}], {}),
    "podDisruptionBudget.enabled": (False, {}),
    "podDisruptionBudget.maxUnavailable": (2, {}),
    "serviceAccount.create": (False, {}),
    "serviceAccount.name": ("crates", {}),
    "podAnnotations": ({"a": "b"}, {}),
    "podLabels": ({"a": "b"}, {}),
    "nodeSelector": ({"a": "b"}, {}),
    "tolerations": ([{"key": "a", "operator": "Exists"}], {}),
    "affinity": ({"nodeAffinity": {}}, {}),
    "topologySpreadConstraints": ([{"maxSkew": 1}], {}),
    "priorityClassName": ("high", {}),
    "podSecurityContext": ({"fsGroup": 7}, {}),
    "securityContext": ({"runAsUser": 7}, {}),
    "serviceMonitor.enabled": (True, {}),
    "serviceMonitor.interval": ("7s", {"serviceMonitor": {"enabled": True}}),
    "serviceMonitor.labels": ({"a": "b"}, {"serviceMonitor": {"enabled": True}}),
    "prometheusRule.enabled": (True, {}),
    "prometheusRule.labels": ({"a": "b"}, {"prometheusRule": {"enabled": True}}),
    "prometheusRule.runbookUrl": (
        "https://git.example.com/alerts.md",
        {"prometheusRule": {"enabled": True}},
    ),
    "dashboard.enabled": (True, {}),
    "dashboard.labels": ({"a": "b"}, {"dashboard": {"enabled": True}}),
    "dashboard.annotations": ({"a": "b"}, {"dashboard": {"enabled": True}}),
}


def keys() -> Iterator[tuple[str, list[str]]]:
    """Return each key of values.yaml that is explained, and the comment directly above it."""
    path: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in VALUES.read_text().splitlines():
        if line.lstrip().startswith("#"):
            comment.append(line.strip())
            continue
        found = re.match(r"( *)([A-Za-z0-9]+):( |$)", line)
        if found is not None:
            path = [one for one in path if one[0] < len(found[1])] + [(len(found[1]), found[2])]
            yield ".".join(name for _, name in path), comment
        comment = []


def explained() -> set[str]:
    return {key for key, comment in keys() if comment and comment[0].startswith("# -- ")}


def leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Return the keys whose value is one for its reader: no map, or one that is explained."""
    known = explained()
    for name, value in tree.items():
        key = f"{path}{name}"
        if isinstance(value, Mapping) and key not in known:
            yield from leaves(value, f"{key}.")
        else:
            yield key


def nested(key: str, value: object) -> dict[str, Any]:
    first, _, rest = key.partition(".")
    return {first: nested(rest, value) if rest else value}


def test_every_value_is_explained_directly_above_it() -> None:
    unexplained = set(leaves(read_yaml(VALUES))) - explained()
    assert unexplained == set()


def test_the_guide_names_every_section_of_the_values() -> None:
    guide = (CHART.parent.parent / "docs" / "kubernetes.md").read_text()
    for key in leaves(read_yaml(VALUES)):
        section = key.partition(".")[0]
        assert re.search(rf"`{section}\b", guide), section


def test_the_values_that_the_guide_shows_are_accepted(helm: Helm) -> None:
    guide = (CHART.parent.parent / "docs" / "kubernetes.md").read_text()
    shown = re.findall(r"^```yaml\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    assert len(shown) > 3
    for text in shown:
        assert helm.objects(yaml.safe_load(text))


def test_every_value_has_a_change_here() -> None:
    assert set(leaves(read_yaml(VALUES))) == CHANGES.keys()


@pytest.mark.parametrize("key", CHANGES)
def test_every_value_changes_what_is_made(helm: Helm, key: str) -> None:
    changed, needed = CHANGES[key]
    before = merged(IMAGE, needed)
    after = merged(before, nested(key, changed))
    assert helm.files(before) != helm.files(after)


@pytest.mark.parametrize("key", CHANGES)
def test_a_misspelt_value_and_one_of_another_type_are_refused(helm: Helm, key: str) -> None:
    if "." in key:
        with pytest.raises(Refused, match=f"{key.rpartition('.')[2]}x"):
            helm.objects(nested(f"{key}x", CHANGES[key][0]))
    with pytest.raises(Refused, match=key.replace(".", "/")):
        helm.objects(nested(key, 1.5))
