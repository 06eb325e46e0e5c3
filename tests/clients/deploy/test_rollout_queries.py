"""A rollout's gates ask a real Prometheus."""

import json
from pathlib import Path

import pytest

from server import Registry, setting

MODEL = "breast_cancer"


@pytest.fixture
def registry(stack, tmp_path):
    registry = Registry(tmp_path / "data", SCONCE__PROMETHEUS__URL=f'"http://{stack.prometheus.address}"')
    registry.run("model", "push", Path(setting("SCONCE_DEMO")), "--promote", "champion")
    yield registry
    registry.process.kill()
    registry.process.wait()


def check(registry, folder, query, code):
    """What a plan is told whose gate asks `query`."""
    gate = {"metric": "prometheus", "name": "up", "query": query, "min": 1}
    stages = [{"percent": 10, "min_samples": 1}, {"percent": 100, "min_samples": 1}]
    plan = folder / "plan.json"
    plan.write_text(json.dumps({"candidate": "1", "strategy": {"canary": {"stages": stages}}, "gates": [gate]}))
    return registry.run("rollout", "check", MODEL, "--plan", plan, code=code)


def test_a_query_that_gives_a_number_is_taken_and_prometheus_says_what_is_wrong_with_others(registry, tmp_path):
    check(registry, tmp_path, 'min(up{job="sconce"})', 0)
    check(registry, tmp_path, "scalar(count(up)) + 0", 0)
    assert "Prometheus says: invalid parameter" in check(registry, tmp_path, "min(up", 1)
    assert "it gives 0 series, expected one" in check(registry, tmp_path, "no_such_metric", 1)
