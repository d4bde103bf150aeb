"""Alerts and dashboard ask for metrics that a running proxy has, by labels that they have."""

import json
import re
from collections.abc import Iterator
from typing import Any, Final

import promql_parser
import pytest
import yaml

from tests.conftest import Launch
from tests.deploy.places import ALERTS, DASHBOARD, ROOT
from tests.world.crates import Package
from tests.world.registry import Registry
from tests.world.server import RegistryServer

# What Prometheus, and its discovery in Kubernetes, add to every series; and a series of its own.
ADDED: Final = frozenset({"job", "instance", "namespace", "pod"})
OF_PROMETHEUS: Final = frozenset({"up"})


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return document


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    for rule in rules():
        yield rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            # Grafana's own durations stand where PromQL wants one.
            asked = re.sub(r"\$__(?:rate_interval|range)\b", "5m", target["expr"])
            yield f"panel {panel['title']} {target['refId']}", asked


EXPRESSIONS: Final = dict(expressions())


class Asked:
    """What one expression asks for: metrics with their matchers, and labels to group by."""

    def __init__(self, expression: str) -> None:
        self.selected: list[tuple[str, dict[str, list[str]]]] = []
        self.grouped: set[str] = set()
        promql_parser.walk(promql_parser.parse(expression), self._visit)

    def _visit(self, node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.MatrixSelector):
            # The walk does not go into these.
            node = node.vector_selector
        if isinstance(node, promql_parser.VectorSelector):
            assert node.name is not None
            matchers = {
                one.name: self._values(one)
                for one in node.matchers.matchers
                if "$" not in one.value
            }
            self.selected.append((node.name, matchers))
            self.grouped |= {one.name for one in node.matchers.matchers}
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            self.grouped |= set(node.modifier.labels)

    @staticmethod
    def _values(matcher: promql_parser.Matcher) -> list[str]:
        is_pattern = matcher.op in (promql_parser.MatchOp.Re, promql_parser.MatchOp.NotRe)
        return matcher.value.split("|") if is_pattern else [matcher.value]


@pytest.fixture
def page(
    registry: Registry, upstream: RegistryServer, launch: Launch
) -> dict[str, dict[str, set[str]]]:
    """Every series of a running proxy: its labels, with the values that they have."""
    registry.publish(Package("leaf", "1.0.0"))
    proxy = launch({"crates-io": upstream})
    proxy.get("/crates-io/index/le/af/leaf")
    series: dict[str, dict[str, set[str]]] = {}
    for sample in proxy.metrics():
        labels = series.setdefault(sample.name, {})
        for label, value in sample.labels.items():
            labels.setdefault(label, set()).add(value)
    return series


def test_what_is_asked_for_is_there(page: dict[str, dict[str, set[str]]]) -> None:
    for where, expression in EXPRESSIONS.items():
        asked = Asked(expression)
        assert asked.selected, where
        labels: set[str] = set(ADDED)
        for metric, matchers in asked.selected:
            if metric in OF_PROMETHEUS:
                continue
            assert metric in page, f"{where}: {metric}"
            labels |= page[metric].keys()
            for label, wanted in matchers.items():
                assert label in page[metric], f"{where}: {metric} has no label {label}"
                for value in wanted:
                    assert any(re.fullmatch(value, there) for there in page[metric][label]), (
                        f"{where}: {metric} is never {label}={value}"
                    )
        assert asked.grouped <= labels, f"{where}: {asked.grouped - labels}"


def test_the_dashboard_shows_what_is_saved_and_what_is_wrong() -> None:
    shown = {
        metric
        for where, expression in EXPRESSIONS.items()
        if where.startswith("panel ")
        for metric, _ in Asked(expression).selected
    }
    assert shown >= {
        "holdfast_requests_total",
        "holdfast_sent_bytes_total",
        "holdfast_upstream_received_bytes_total",
        "holdfast_request_duration_seconds_bucket",
        "holdfast_served_age_seconds_bucket",
        "holdfast_breaker_state",
        "holdfast_cache_bytes",
        "holdfast_cache_limit_bytes",
        "holdfast_evicted_bytes_total",
        "holdfast_integrity_failures_total",
        "holdfast_store_failures_total",
        "holdfast_connections",
        "process_resident_memory_bytes",
    }


def test_variables_of_the_dashboard_are_labels_that_there_are(
    page: dict[str, dict[str, set[str]]],
) -> None:
    names = {variable["name"] for variable in dashboard()["templating"]["list"]}
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
            assert found is not None
            assert found[2] in page[found[1]].keys() | ADDED
    text = DASHBOARD.read_text()
    used = set(re.findall(r"\$\{?((?!__)[a-z]+)", text))
    assert used == names


def test_panels_are_apart_and_say_where_they_ask() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(dashboard()["panels"])
    for panel in panels():
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    notes = rule["annotations"]
    assert notes.keys() == {"summary", "description", "runbook"}
    document, _, anchor = notes["runbook"].partition("#")
    headings = re.findall(r"^## (\w+)$", (ROOT / document).read_text(), re.MULTILINE)
    assert anchor == rule["alert"].lower()
    assert rule["alert"] in headings
    asked = Asked(rule["expr"])
    # Without an aggregation a series keeps its labels.
    grouped = asked.grouped if "sum" in rule["expr"] else ADDED
    for label in re.findall(r"\$labels\.(\w+)", notes["summary"] + notes["description"]):
        assert label in grouped, label


def test_an_alert_tells_one_proxy_from_another() -> None:
    for rule in rules():
        for labels in re.findall(r"sum by \((.*?)\)", rule["expr"]):
            assert set(labels.split(", ")) >= {"namespace", "pod", "instance"}, rule["alert"]


def test_every_runbook_is_of_an_alert() -> None:
    headings = re.findall(r"^## (\w+)$", (ROOT / "docs/alerts.md").read_text(), re.MULTILINE)
    assert headings == [rule["alert"] for rule in rules()]
