"""Each alert fires when it should and only then, as Prometheus itself evaluates it (promtool)."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.conftest import ROOT
from tests.support.server_process import COMMANDS

ALERTS = yaml.safe_load((ROOT / "k8s" / "components" / "monitoring" / "alerts.yaml").read_text())["spec"]
RULES = {rule["alert"]: rule for group in ALERTS["groups"] for rule in group["rules"]}
POD = 'namespace="deepcode", pod="a"'
REQUESTS = f'deepcode_http_requests_total{{{POD}, route="/v1/analyze", status="%s"}}'
REJECTIONS = f'deepcode_admission_rejections_total{{{POD}, reason="%s"}}'
WAITED = f'deepcode_request_queue_time_seconds_bucket{{{POD}, le="%s"}}'
UP = f"deepcode_engine_up{{{POD}}}"

# Values of every minute: a+bxn is a, a+b, a+2b, … What happened, until when, and which alerts fire then.
Series = dict[str, str]
HEALTHY: Series = {
    UP: "1x60",
    REQUESTS % 200: "0+60x60",
    REQUESTS % 500: "0x60",
    REJECTIONS % "overloaded": "0x60",
    WAITED % "5.0": "0+60x60",
    WAITED % "+Inf": "0+60x60",
}
CASES: dict[str, tuple[Series, str, set[str]]] = {
    "all is well": ({}, "60m", set()),
    "the engine is down for less than a minute": ({UP: "1x9 0 1x50"}, "10m30s", set()),
    "the engine is down": ({UP: "1x9 0x50"}, "12m", {"DeepcodeEngineDown"}),
    "nobody is scraped": ({UP: "1x9 stale"}, "16m", {"DeepcodeGone"}),
    "one in a hundred is refused": ({REJECTIONS % "overloaded": "0+0.6x60"}, "60m", set()),
    "one in ten is refused": ({REJECTIONS % "overloaded": "0+6x60"}, "20m", {"DeepcodeRefusing"}),
    "many are refused that their own key limits": ({REJECTIONS % "rate-limited": "0+6x60"}, "60m", set()),
    "one in fifty waits for more than five seconds": ({WAITED % "5.0": "0+58.8x60"}, "60m", set()),
    "one in ten waits for more than five seconds": (
        {WAITED % "5.0": "0+54x60", WAITED % "10.0": "0+60x60"},
        "20m",
        {"DeepcodeWaiting"},
    ),
    "one 500, once": ({REQUESTS % 500: "0x9 1x50"}, "20m", set()),
    "500 again and again": ({REQUESTS % 500: "0+1x60"}, "20m", {"DeepcodeErrors"}),
}


def promtool(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = shutil.which("promtool", path=f"{COMMANDS}{os.pathsep}{os.environ['PATH']}")
    if command is None:
        pytest.skip("no promtool to evaluate the alerts with: scripts/install_promtool.sh .venv/bin")
    return subprocess.run([command, *arguments], cwd=folder, capture_output=True, text=True)


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """The alerts as a file of Prometheus' own: a PrometheusRule's spec is one."""
    (tmp_path / "alerts.json").write_text(json.dumps(ALERTS))
    return tmp_path


def test_the_rules_are_prometheus_own(rules: Path) -> None:
    done = promtool("check", "rules", "alerts.json", folder=rules)

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(RULES)} rules found" in done.stdout


@pytest.mark.parametrize("case", CASES)
def test_an_alert_fires_when_it_should_and_only_then(rules: Path, case: str) -> None:
    changed, at, firing = CASES[case]
    series = [{"series": name, "values": values} for name, values in (HEALTHY | changed).items()]
    # ALERTS holds who fires, and leaves texts alone.
    fires = [
        {"expr": f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)', "eval_time": at}
        | {"exp_samples": [{"labels": "{}", "value": int(alert in firing)}]}
        for alert in RULES
    ]
    test = {
        "rule_files": ["alerts.json"],
        "evaluation_interval": "30s",
        "tests": [{"interval": "1m", "input_series": series, "promql_expr_test": fires}],
    }
    (rules / "test.json").write_text(json.dumps(test))

    done = promtool("test", "rules", "test.json", folder=rules)

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case_that_makes_it_fire_and_says_what_to_do() -> None:
    assert set().union(*(firing for _, _, firing in CASES.values())) == RULES.keys()
    for rule in RULES.values():
        assert rule["annotations"].keys() == {"summary", "description"}
