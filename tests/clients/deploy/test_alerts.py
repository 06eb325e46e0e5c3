"""The rules, by promtool, and alerts that fire and clear in a live run."""

import re

import pytest
import tritonclient.grpc as triton
import yaml

from stack import DEPLOY, FULL, load, number, output_of, tool, wait_until

PROMETHEUS = DEPLOY / "prometheus"
ALERTS = [
    rule["alert"]
    for group in yaml.safe_load((PROMETHEUS / "rules" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]


def test_prometheus_and_alertmanager_take_their_configuration():
    output_of(tool("promtool"), "check", "config", "--lint=all", "--lint-fatal", PROMETHEUS / "prometheus.yml")
    output_of(tool("amtool"), "check-config", PROMETHEUS / "alertmanager.yml")


def test_rules_by_their_cases():
    assert "SUCCESS" in output_of(tool("promtool"), "test", "rules", PROMETHEUS / "rules_test.yml")


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_has_a_case_in_which_it_fires(alert):
    assert re.search(rf'alertname="{alert}"', (PROMETHEUS / "rules_test.yml").read_text())


def test_every_metric_of_the_rules_and_dashboards_is_one_that_sconce_has(stack):
    """Also those whose series come with their first event: their names are in what /metrics describes."""
    described = set(stack.prometheus.get("/api/v1/metadata")["data"])
    # The text format's types carry the suffix; a histogram's series have more.
    described |= {name + suffix for name in described for suffix in ("_bucket", "_count", "_sum", "_total", "_info")}
    files = [*(PROMETHEUS / "rules").glob("*.yml"), *(DEPLOY / "grafana" / "dashboards").glob("*.json")]
    for path in files:
        used = set(re.findall(r"\b(?:sconce|process)_[a-z0-9_]+\b", re.sub(r'"[^"]*"(?=: )', "", path.read_text())))
        assert used <= described, f"{path.name}: {sorted(used - described)}"


@pytest.mark.timeout(900)
def test_alerts_fire_and_clear_in_a_live_run(stack):
    def firing():
        return sorted(alert for alert in stack.alerts() if alert[0] != "SconceSpansDropped")

    assert not firing()

    # Answers that no number can hold, and more callers than `queued` has slots: each waits for all others.
    expected = {
        ("SconceErrorRate", "linear"),
        ("SconceSloBurnFast", "linear", "errors"),
        ("SconceLatencyP95", "queued"),
        ("SconceLatencyP99", "queued"),
        ("SconceSloBurnFast", "queued", "latency"),
        ("SconceLoadFailed",),
    }
    with (
        load(stack.grpc, "linear", number("features", 1e20), pause=0.02) as failed,
        load(stack.grpc, "queued", number("INPUT0", 1.0), callers=20),
        triton.InferenceServerClient(stack.admin) as control,
    ):
        with pytest.raises(triton.InferenceServerException):
            control.load_model("broken")
        wait_until("Alertmanager shows them", 60, lambda: sorted(expected - stack.alerts().keys()))
        silenced = lambda: stack.alerts()["SconceErrorRate", "linear"]["status"]["inhibitedBy"]
        wait_until("who was woken need not read the rest", 10, lambda: not silenced() and "a ticket")
        shown = stack.alerts()
    assert set(failed) == {"StatusCode.INTERNAL"}
    summary = shown["SconceErrorRate", "linear"]["annotations"]["summary"]
    assert re.fullmatch(r"linear: [\d.]+% of requests fail", summary)

    # A ticket lasts as long as its window: six hours are minutes here.
    wait_until("they clear", 600 if FULL else 60, lambda: [one for one in firing() if FULL or one[0] != "SconceSloBurnSlow"])
    # Both are still asked, and answer.
    assert len(stack.query("sconce:requests:rate5m > 0")) == 2


@pytest.mark.skipif(not FULL, reason="takes a shortened ten minutes; with --full")
def test_lost_spans_fire(stack):
    with load(stack.grpc, "linear", number("features", 1e20), pause=0.02):
        wait_until("Alertmanager shows it", 60, lambda: {("SconceSpansDropped",)} - stack.alerts().keys())
