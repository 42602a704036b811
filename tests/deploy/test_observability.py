"""Rules, dashboard and collector: valid, and about metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry

from controlplane.telemetry import ControlPlaneMetrics, GatewayMetrics, WorkerMetrics

FOLDER = Path(__file__).parents[2] / "deploy"
RULES = yaml.safe_load((FOLDER / "prometheus" / "rules.yml").read_text())
DASHBOARD = json.loads((FOLDER / "grafana" / "dashboards" / "eep.json").read_text())
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)"
)


def promtool(*arguments):
    return subprocess.run(
        ["promtool", *arguments], cwd=FOLDER / "prometheus", capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture(scope="module")
def exported():
    """Every series name that some process exports, histograms and counters with their suffixes."""
    registry = CollectorRegistry()
    for made in (ControlPlaneMetrics, WorkerMetrics, GatewayMetrics):
        made(registry)
    names = set()
    for family in registry.collect():
        suffixes = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",)}.get(family.type, ("",))
        names.update(family.name + suffix for suffix in suffixes)
    return names


def rules():
    return [rule for group in RULES["groups"] for rule in group["rules"]]


def expressions():
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return [*panels, *(note["expr"] for note in DASHBOARD["annotations"]["list"])]


def metrics_in(expression):
    without_labels = re.sub(r"\{[^}]*\}|by \([^)]*\)", "", expression)
    return set(re.findall(r"\b(eep[_:][a-z0-9_:]+)", without_labels))


def test_every_alert_is_about_a_metric_that_exists(exported):
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    used = set().union(*(metrics_in(rule["expr"]) for rule in rules()))
    assert used
    assert used - recorded - exported == set()


def test_every_panel_is_about_a_metric_that_exists(exported):
    used = set().union(*map(metrics_in, expressions()))
    assert len(used) > 15
    assert used - exported == set()


def test_every_alert_says_how_bad_it_is_and_what_to_do():
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("warning", "critical")
            assert rule["annotations"].keys() == {"summary", "action"}


def test_panels_do_not_overlap_and_have_ids_of_their_own():
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@needs_promtool
def test_promtool_accepts_the_rules_and_the_scrape_configuration():
    assert promtool("check", "rules", "rules.yml").returncode == 0
    assert promtool("check", "config", "--syntax-only", "prometheus.yml").returncode == 0


@needs_promtool
def test_alerts_fire_when_they_should_and_are_silent_when_they_should():
    done = promtool("test", "rules", "rules.test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_every_panels_expression_is_promql(tmp_path):
    written = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "1m")}
        for number, expression in enumerate(expressions())
    ]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": written}]}))
    done = promtool("check", "rules", str(file))
    assert done.returncode == 0, done.stderr


def test_the_collectors_pipelines_use_what_is_defined():
    collector = yaml.safe_load((FOLDER / "otel" / "collector.yaml").read_text())
    for pipeline in collector["service"]["pipelines"].values():
        for kind, names in pipeline.items():
            assert set(names) <= collector[kind].keys()
    assert set(collector["service"]["extensions"]) <= collector["extensions"].keys()


def test_the_dashboard_reads_the_data_source_that_is_provisioned():
    sources = yaml.safe_load((FOLDER / "grafana" / "provisioning" / "datasources" / "eep.yaml").read_text())
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {sources["datasources"][0]["uid"]}
