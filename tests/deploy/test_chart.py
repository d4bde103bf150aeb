"""The chart, rendered by Helm's own engine: what it makes."""

import base64
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import pytest

from tests.conftest import Launch
from tests.deploy.helm import IMAGE, Helm
from tests.deploy.places import CHART, DOCKERFILE, EXAMPLES, merged, read_yaml
from tests.deploy.release import (
    COMPANY,
    EVERYTHING,
    NAME,
    container,
    environment,
    pod,
    settings,
)
from tests.world.server import RegistryServer, bound_socket

# Kinds of whose makers no schema is here.
OPERATORS: Final = {"ServiceMonitor", "PrometheusRule", "HTTPRoute"}


# Every example, and everything at once


@pytest.mark.parametrize("version", ["1.27", "1.37"])
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_object_of_an_example_is_what_kubernetes_takes(
    helm: Helm, example: Path, version: str
) -> None:
    for each in helm.objects(read_yaml(example)):
        if each["kind"] not in OPERATORS:
            kubernetes_validate.validate(each, version, strict=True)


def test_every_object_that_there_can_be_is_what_kubernetes_takes(helm: Helm) -> None:
    objects = helm.objects(EVERYTHING)
    for each in objects:
        if each["kind"] not in OPERATORS:
            kubernetes_validate.validate(each, "1.37", strict=True)
    assert {each["kind"] for each in objects} >= OPERATORS | {"Ingress", "NetworkPolicy"}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_configuration_of_an_example_is_one_that_the_proxy_takes(
    helm: Helm, example: Path, tmp_path: Path
) -> None:
    values = read_yaml(example)
    read = settings(helm, values, tmp_path)
    for name, upstream in values.get("config", {}).get("upstreams", {}).items():
        assert read.upstreams[name].index == upstream["index"]


def test_helm_lint_finds_nothing_but_that_there_is_no_icon(helm: Helm) -> None:
    found = helm.lint(merged(IMAGE, EVERYTHING))
    assert [one["error"] for one in found] == ["icon is recommended"]


def test_the_charts_version_of_the_program_is_the_programs() -> None:
    from proxy.version import VERSION

    assert read_yaml(CHART / "Chart.yaml")["appVersion"] == VERSION


# The configuration


def test_values_of_the_configuration_arrive_as_they_were_written(
    helm: Helm, tmp_path: Path
) -> None:
    values = {
        "config": {
            "server": {"h2c": False, "contact": 'a "quoted" <word> & ~'},
            "cache": {"memory": 33554432},
            "upstreams": {
                "company": {
                    "index": "sparse+https://packages.example.com/index/",
                    "connections": 8,
                    "absent_statuses": [403, 404],
                }
            },
        }
    }
    read = settings(helm, values, tmp_path)
    company = read.upstreams["company"]
    assert (read.server.h2c, read.server.contact) == (False, 'a "quoted" <word> & ~')
    assert read.cache.memory_bytes == 33554432
    assert (company.connections, sorted(company.absent_statuses)) == (8, [403, 404])


def test_another_configuration_is_another_pod_and_another_label_is_not(helm: Helm) -> None:
    def checksum(values: dict[str, Any]) -> str:
        template = helm.one("StatefulSet", values)["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    values = {"config": COMPANY, "existingSecret": "tokens"}
    before = checksum(values)
    assert before == checksum({**values, "podLabels": {"a": "b"}})
    assert before != checksum(merged(values, {"config": {"log": {"level": "debug"}}}))


def test_a_secret_of_the_environment_is_in_no_configmap(helm: Helm) -> None:
    values = {
        "config": COMPANY,
        "existingSecret": "holdfast-secrets",
        "tls": {"existingSecret": "holdfast-tls"},
        "env": [{"name": "HTTPS_PROXY", "value": "http://me:in-the-pod-alone@proxy.corp:3128"}],
    }
    for each in helm.objects(values):
        text = repr(each)
        assert ("in-the-pod-alone" in text) == (each["kind"] == "StatefulSet")
        assert each["kind"] != "Secret"
    encoded = base64.b64encode(b"in-the-pod-alone").decode()
    assert encoded not in repr(helm.objects(values))


def test_secrets_are_files_that_only_the_proxy_reads(helm: Helm) -> None:
    statefulset = helm.one(
        "StatefulSet", {"existingSecret": "tokens", "tls": {"existingSecret": "pair"}}
    )
    volumes = {one["name"]: one for one in pod(statefulset)["volumes"]}
    mounts = {one["name"]: one for one in container(statefulset)["volumeMounts"]}
    for name, secret in (("secrets", "tokens"), ("tls", "pair")):
        assert volumes[name]["secret"] == {"secretName": secret, "defaultMode": 0o440}
        assert mounts[name]["readOnly"] is True
    assert mounts["secrets"]["mountPath"] == "/run/secrets/holdfast"
    certificate = environment(statefulset)["HOLDFAST__SERVER__TLS__CERTIFICATE"]
    assert certificate == f"{mounts['tls']['mountPath']}/tls.crt"


# The pod


def test_the_pod_is_locked_down(helm: Helm) -> None:
    statefulset = helm.one("StatefulSet")
    outer, inner = pod(statefulset)["securityContext"], container(statefulset)["securityContext"]
    assert outer["runAsNonRoot"] is True
    assert outer["seccompProfile"] == {"type": "RuntimeDefault"}
    assert inner == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod(statefulset)["automountServiceAccountToken"] is False


def test_the_pods_account_is_the_images(helm: Helm) -> None:
    outer = pod(helm.one("StatefulSet"))["securityContext"]
    account = f"{outer['runAsUser']}:{outer['runAsGroup']}"
    assert f"\nUSER {account}\n" in DOCKERFILE.read_text()


def test_what_the_proxy_writes_to_is_mounted_and_nothing_else_can_be_written(
    helm: Helm, tmp_path: Path
) -> None:
    statefulset = helm.one("StatefulSet")
    read = settings(helm, {}, tmp_path)
    writable = {
        one["mountPath"]
        for one in container(statefulset)["volumeMounts"]
        if not one.get("readOnly")
    }
    assert writable == {str(read.cache.dir), str(read.state.dir)}


@pytest.mark.parametrize("family", ["IPv4", "IPv6", "both"])
def test_probes_and_metrics_find_the_port_that_is_listened_on(
    helm: Helm, family: str, tmp_path: Path
) -> None:
    values = {"ipFamily": family}
    statefulset = helm.one("StatefulSet", values)
    read = settings(helm, values, tmp_path)
    ports = {one["name"]: one["containerPort"] for one in container(statefulset)["ports"]}
    assert {address.port for address in read.server.listen} == {ports["http"]}
    assert read.server.admin_listen is not None
    assert read.server.admin_listen.port == ports["admin"]
    assert (":" in read.server.admin_listen.host) == (family != "IPv4")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container(statefulset)[probe]["httpGet"]
        assert asked["port"] == "admin"
        assert asked["path"] in ("/-/healthz", "/-/readyz")
    for name, port in ((NAME, "http"), (f"{NAME}-pods", "admin")):
        (service_port,) = helm.one("Service", values, name=name)["spec"]["ports"]
        assert service_port["targetPort"] == port


def test_liveness_does_not_ask_whether_it_is_ready(helm: Helm) -> None:
    one = container(helm.one("StatefulSet"))
    assert one["livenessProbe"]["httpGet"]["path"] == "/-/healthz"
    assert one["readinessProbe"]["httpGet"]["path"] == "/-/readyz"


@pytest.mark.parametrize("drain", [0, 25, 600])
def test_the_pod_is_not_killed_while_it_drains(helm: Helm, drain: int, tmp_path: Path) -> None:
    values = {"shutdown": {"drainSeconds": drain, "preStopSeconds": 7}}
    statefulset = helm.one("StatefulSet", values)
    assert settings(helm, values, tmp_path).server.drain_s == drain
    assert container(statefulset)["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "7"]
    assert pod(statefulset)["terminationGracePeriodSeconds"] >= 7 + drain + 15


# The ways in


@pytest.mark.parametrize(
    ("values", "protocol"),
    [
        ({}, "kubernetes.io/h2c"),
        ({"config": {"server": {"h2c": True}}}, "kubernetes.io/h2c"),
        ({"config": {"server": {"h2c": False}}}, "http"),
        ({"tls": {"existingSecret": "pair"}}, "https"),
    ],
)
def test_the_service_says_what_it_speaks(helm: Helm, values: dict[str, Any], protocol: str) -> None:
    (port,) = helm.one("Service", values, name=NAME)["spec"]["ports"]
    assert port["appProtocol"] == protocol


def test_clients_are_led_to_the_clients_port_alone(helm: Helm) -> None:
    ingress = helm.one("Ingress", EVERYTHING)["spec"]["rules"][0]["http"]["paths"][0]
    assert ingress["backend"]["service"] == {"name": NAME, "port": {"name": "http"}}
    (backend,) = helm.one("HTTPRoute", EVERYTHING)["spec"]["rules"][0]["backendRefs"]
    assert backend == {"name": NAME, "port": 80}
    (port,) = helm.one("Service", name=NAME)["spec"]["ports"]
    assert (port["name"], port["port"]) == ("http", 80)


def test_selectors_select_the_pods(helm: Helm) -> None:
    objects = helm.objects(EVERYTHING)
    statefulset = next(each for each in objects if each["kind"] == "StatefulSet")
    labels = statefulset["spec"]["template"]["metadata"]["labels"].items()
    selectors = [
        each["spec"][key].get("matchLabels", each["spec"][key])
        for each in objects
        for key in ("selector", "podSelector")
        if key in each.get("spec", {}) and each["kind"] != "ServiceMonitor"
    ]
    assert len(selectors) == 5
    for selector in selectors:
        assert selector.items() <= labels
    chosen = helm.one("ServiceMonitor", EVERYTHING)["spec"]["selector"]["matchLabels"].items()
    services = [each for each in objects if each["kind"] == "Service"]
    found = [each for each in services if chosen <= each["metadata"]["labels"].items()]
    assert [each["metadata"]["name"] for each in found] == [f"{NAME}-pods"]


def test_only_those_named_reach_the_metrics(helm: Helm) -> None:
    open_to = {
        rule["ports"][0]["port"]: rule.get("from")
        for rule in helm.one("NetworkPolicy")["spec"]["ingress"]
    }
    assert open_to["http"] is None
    assert open_to["admin"] == [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    ]
    closed = helm.one("NetworkPolicy", {"networkPolicy": {"metrics": []}})["spec"]["ingress"]
    assert [rule["ports"][0]["port"] for rule in closed] == ["http"]


# Replicas and volumes


def test_every_replica_has_volumes_of_its_own(helm: Helm) -> None:
    spec = helm.one("StatefulSet", {"replicas": 3})["spec"]
    claims = {one["metadata"]["name"]: one["spec"] for one in spec["volumeClaimTemplates"]}
    assert claims.keys() == {"cache", "state"}
    assert claims["cache"]["accessModes"] == ["ReadWriteOnce"]
    mounted = {one["name"] for one in container({"spec": spec})["volumeMounts"]}
    assert claims.keys() <= mounted


def test_an_existing_claim_is_used_in_place_of_a_new_one(helm: Helm) -> None:
    values = {"persistence": {"cache": {"existingClaim": "old-cache"}}}
    spec = helm.one("StatefulSet", values)["spec"]
    assert [one["metadata"]["name"] for one in spec["volumeClaimTemplates"]] == ["state"]
    volumes = {one["name"]: one for one in spec["template"]["spec"]["volumes"]}
    assert volumes["cache"]["persistentVolumeClaim"] == {"claimName": "old-cache"}


def test_the_notes_show_the_address_that_clients_use(helm: Helm) -> None:
    inside = helm.files(IMAGE)["NOTES.txt"]
    assert 'index = "sparse+http://demo-holdfast.builds.svc/crates-io/index/"' in inside
    outside = helm.files(merged(IMAGE, EVERYTHING))["NOTES.txt"]
    assert 'index = "sparse+https://crates.example.com/crates-io/index/"' in outside


@pytest.mark.parametrize(
    "public_url",
    [
        "https://crates.example.com/cargo",
        ["http://demo-holdfast.builds.svc", "https://crates.example.com/cargo/"],
    ],
)
def test_the_notes_show_the_path_of_the_public_address(helm: Helm, public_url: object) -> None:
    values = {
        "config": {"server": {"public_url": public_url}},
        "ingress": {"enabled": True, "host": "crates.example.com"},
    }
    notes = helm.files(merged(IMAGE, values))["NOTES.txt"]
    assert 'index = "sparse+https://crates.example.com/cargo/crates-io/index/"' in notes


def test_alerts_lead_to_the_runbook_where_it_can_be_read(helm: Helm) -> None:
    values = {"prometheusRule": {"enabled": True, "runbookUrl": "https://git.example.com/a.md"}}
    for group in helm.one("PrometheusRule", values)["spec"]["groups"]:
        for rule in group["rules"]:
            expected = f"https://git.example.com/a.md#{rule['alert'].lower()}"
            assert rule["annotations"]["runbook_url"] == expected


def test_a_proxy_with_the_pods_variables_answers_the_pods_probes(
    helm: Helm, upstream: RegistryServer, launch: Launch, tmp_path: Path
) -> None:
    statefulset = helm.one("StatefulSet")
    with bound_socket(0) as reserved:
        port: int = reserved.getsockname()[1]
        variables = environment(statefulset) | {
            "HOLDFAST__SERVER__ADMIN_LISTEN": f"127.0.0.1:{port}",
            "HOLDFAST__CACHE__DIR": str(tmp_path / "cache"),
            "HOLDFAST__STATE__DIR": str(tmp_path / "state"),
        }
        # The rest is as it is in the pod; where clients come in, the test has chosen already.
        del variables["HOLDFAST__SERVER__LISTEN"], variables["HOLDFAST_CONFIG"]
        proxy = launch({"crates-io": upstream}, env=variables)

        def admin(path: str) -> tuple[int, str]:
            connection = HTTPConnection("127.0.0.1", port, timeout=10)
            try:
                connection.request("GET", path, headers={"Host": "10.1.2.3:9090"})
                response = connection.getresponse()
                return response.status, response.read().decode()
            finally:
                connection.close()

        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert admin(container(statefulset)[probe]["httpGet"]["path"])[0] == 200
        (endpoint,) = helm.one("ServiceMonitor", EVERYTHING)["spec"]["endpoints"]
        status, page = admin(endpoint["path"])
        assert (status, "holdfast_build_info" in page) == (200, True)
        assert proxy.get(endpoint["path"]).status == 404
