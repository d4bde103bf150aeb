"""A release as its tests look at it: values that turn everything on, the pod, its configuration."""

from pathlib import Path
from typing import Any, Final

from proxy import config
from proxy.config import Overrides
from tests.deploy.helm import RELEASE, Helm, Object
from tests.deploy.places import merged

NAME: Final = f"{RELEASE}-holdfast"
EVERYTHING: Final = {
    "config": {"server": {"trusted_proxies": ["10.0.0.0/8"]}},
    "ingress": {"enabled": True, "host": "crates.example.com"},
    "gateway": {"enabled": True, "parentRefs": [{"name": "public"}]},
    "serviceMonitor": {"enabled": True},
    "prometheusRule": {"enabled": True},
    "dashboard": {"enabled": True},
}
COMPANY: Final = {
    "upstreams": {
        "company": {
            "index": "sparse+https://packages.example.com/index/",
            "token": {"file": "/run/secrets/holdfast/company-token"},
        }
    },
    "registries": {"company": {"access": "open"}},
}


def pod(statefulset: Object) -> Object:
    """Return the specification of the pods."""
    spec: Object = statefulset["spec"]["template"]["spec"]
    return spec


def container(statefulset: Object) -> Object:
    """Return the one container of the pods."""
    (one,) = pod(statefulset)["containers"]
    assert isinstance(one, dict)
    return one


def environment(statefulset: Object) -> dict[str, str]:
    """Return the variables that are written out."""
    return {one["name"]: one["value"] for one in container(statefulset)["env"] if "value" in one}


def settings(helm: Helm, values: dict[str, Any], tmp_path: Path) -> config.Settings:
    """Read the configuration as the pod would, with the files of its Secret."""
    text = helm.one("ConfigMap", merged(values, {"dashboard": {"enabled": False}}))
    file = tmp_path / "holdfast.toml"
    secrets = tmp_path / "secrets"
    secrets.mkdir(exist_ok=True)
    (secrets / "company-token").write_text("a token\n")
    file.write_text(text["data"]["holdfast.toml"].replace("/run/secrets/holdfast", str(secrets)))
    return config.load(file, environment(helm.one("StatefulSet", values)), Overrides())
