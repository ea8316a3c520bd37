"""What watches the server asks for metrics and labels that it has."""

from collections.abc import Iterator
from typing import Any

import httpx
import promql_parser as promql
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.conftest import ROOT
from tests.deploy.kustomized import Rendered

# What Prometheus puts on whatever a PodMonitor finds.
TARGET_LABELS = {"namespace", "pod", "container", "job", "instance"}
FUNCTION = "def f(a, b=[]):\n    if a == None:\n        return b\n    return a\n"


@pytest.fixture(scope="module")
def labels(server_url: str) -> dict[str, set[str]]:
    """Every sample of our own /metrics and its labels, once the server has done something and refused something."""
    for body in ({"code": FUNCTION}, {"code": "def f(:\n"}, {"nonsense": 1}):
        httpx.post(f"{server_url}/v1/analyze", json=body, timeout=60)
    families = text_string_to_metric_families(httpx.get(f"{server_url}/metrics", timeout=60).text)
    found: dict[str, set[str]] = {}
    for family in families:
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
        if not family.samples:  # a counter that has counted nothing yet: its kinds are documented
            found[f"{family.name}_total"] = {"model_name", "reason"}
    return found


def selectors(expression: Any) -> Iterator[promql.VectorSelector]:
    """The metrics an expression reads."""
    if isinstance(expression, promql.VectorSelector):
        yield expression
    for part in ("lhs", "rhs", "expr", "vector_selector"):
        if hasattr(expression, part):
            yield from selectors(getattr(expression, part))
    for argument in getattr(expression, "args", ()):
        yield from selectors(argument)


def queries(built: Rendered) -> list[str]:
    """Every query of alerts and scalers."""
    found = [
        rule["expr"]
        for resource in built.of("PrometheusRule")
        for group in resource["spec"]["groups"]
        for rule in group["rules"]
    ]
    triggers = (trigger for resource in built.of("ScaledObject") for trigger in resource["spec"]["triggers"])
    return found + [trigger["metadata"]["query"] for trigger in triggers]


@pytest.mark.parametrize("name", ["overlays/cpu", "overlays/gpu", "overlays/variant"])
def test_alerts_and_scalers_read_metrics_and_labels_that_there_are(
    rendered: dict[str, Rendered], labels: dict[str, set[str]], name: str
) -> None:
    asked = [selector for query in queries(rendered[name]) for selector in selectors(promql.parse(query))]

    assert len(asked) >= 5
    for selector in asked:
        assert selector.name in labels
        assert {matcher.name for matcher in selector.matchers.matchers} <= labels[selector.name] | TARGET_LABELS
        namespaces = [matcher.value for matcher in selector.matchers.matchers if matcher.name == "namespace"]
        assert namespaces == [rendered[name].named("Deployment", "deepcode-analyst")["metadata"]["namespace"]]


def test_reasons_and_routes_that_alerts_name_exist(rendered: dict[str, Rendered], server_url: str) -> None:
    paths = httpx.get(f"{server_url}/schema/openapi.json", timeout=60).json()["paths"]
    page = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    asked = [each for query in queries(rendered["overlays/cpu"]) for each in selectors(promql.parse(query))]
    matchers = {
        (matcher.name, value)
        for each in asked
        for matcher in each.matchers.matchers
        for value in matcher.value.split("|")
    }
    reasons = {value for name, value in matchers if name == "reason"}

    assert "overloaded" in reasons
    assert [reason for reason in reasons if f"`{reason}`" not in page] == []
    assert ("route", "/v1/.*") in matchers
    assert any(path.startswith("/v1/") for path in paths)


def test_the_autoscaler_reads_what_the_adapter_offers_and_the_server_has(
    rendered: dict[str, Rendered], labels: dict[str, set[str]]
) -> None:
    [autoscaler] = rendered["overlays/cpu"].of("HorizontalPodAutoscaler")
    rules = yaml.safe_load((ROOT / "k8s" / "components" / "autoscale-hpa" / "adapter-rules.yaml").read_text())
    offered = [next(selectors(promql.parse(rule["seriesQuery"]))).name for rule in rules["rules"]["custom"]]
    asked = [metric["pods"]["metric"]["name"] for metric in autoscaler["spec"]["metrics"]]

    assert asked == offered
    assert set(asked) <= labels.keys()
    for rule in rules["rules"]["custom"]:
        filled = rule["metricsQuery"].replace("<<.Series>>", asked[0]).replace("<<.LabelMatchers>>", 'pod="a"')
        assert next(selectors(promql.parse(filled.replace("<<.GroupBy>>", "pod")))).name == asked[0]


def test_prometheus_scrapes_a_path_the_server_has(rendered: dict[str, Rendered], server_url: str) -> None:
    for name in ("overlays/cpu", "overlays/gpu"):
        [monitor] = rendered[name].of("PodMonitor")
        [endpoint] = monitor["spec"]["podMetricsEndpoints"]
        assert httpx.get(server_url + endpoint["path"], timeout=60).status_code == 200
