"""The dashboards' queries, asked of a Prometheus that scrapes a Sconce. Grafana itself is not here."""

import json
import subprocess
import sys

import pytest
import yaml

from stack import DEPLOY, wait_until

GRAFANA = DEPLOY / "grafana"
FILES = sorted((GRAFANA / "dashboards").glob("*.json"))
PANELS = [(path.stem, panel) for path in FILES for panel in json.loads(path.read_text())["panels"]]
VARIABLES = {"$job": "sconce", "$model": "queued", "$__rate_interval": "5s", "$__range": "1m"}
# What has no series here, and why not. All else must have some.
EMPTY = {
    "Requests by tenant": "no header is configured",
    "Tokens in a batch": "no text model",
    "Answers from the cache": "no cache",
    "Refused by the queue": "the queue is not full",
    "Requests, now and a day ago / a day ago": "a day ago it was not there",
    "Mean time in the model, now and a day ago / a day ago": "a day ago it was not there",
    "Requests by variant": "no route is declared",
    "p99 by variant": "no route is declared",
    "What became of shadows' requests": "no shadow is declared",
    "Where rollouts stand": "there is no rollout",
    "How watched versions stand": "nothing is watched",
    "How far features are from the reference": "nothing is watched",
    "Share of shadows' answers that disagree": "no shadow is declared",
    "Accuracy, by labels": "no labels come",
    "Mean absolute error, by labels": "no labels come",
    "Share of predictions with a label": "no labels come",
    "Model memory / {{instance}} {{device}}: bound": "no bound is configured",
}


def test_dashboards_are_those_of_the_code(tmp_path):
    (tmp_path / "dashboards").mkdir()
    (tmp_path / "dashboards.py").write_bytes((GRAFANA / "dashboards.py").read_bytes())
    subprocess.run([sys.executable, tmp_path / "dashboards.py"], check=True)
    written = {path.name: path.read_text() for path in (tmp_path / "dashboards").iterdir()}
    assert written == {path.name: path.read_text() for path in FILES}, "run deploy/grafana/dashboards.py"
    assert [path.stem for path in FILES] == ["capacity", "drift", "model", "overview", "rollout"]


def test_what_grafana_is_provisioned_with_fits_together():
    def provisioned(kind):
        return yaml.safe_load((GRAFANA / "provisioning" / kind / "sconce.yml").read_text())

    sources = {source["uid"]: source["type"] for source in provisioned("datasources")["datasources"]}
    assert sources == {"prometheus": "prometheus", "jaeger": "jaeger"}
    [exemplars] = provisioned("datasources")["datasources"][0]["jsonData"]["exemplarTraceIdDestinations"]
    assert exemplars["datasourceUid"] in sources
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    folders = [volume.split(":")[1] for volume in compose["services"]["grafana"]["volumes"]]
    assert provisioned("dashboards")["providers"][0]["options"]["path"] in folders


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_panels_lie_side_by_side(path):
    panels = json.loads(path.read_text())["panels"]
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)


@pytest.mark.parametrize("name, panel", PANELS, ids=[f"{name}: {panel['title']}" for name, panel in PANELS])
def test_every_query_gives_series(stack, name, panel):
    for target in panel["targets"]:
        expression = target["expr"]
        for variable, value in VARIABLES.items():
            expression = expression.replace(variable, value)
        assert "$" not in expression
        label = f"{panel['title']} / {target['legendFormat']}"
        if panel["title"] in EMPTY or label in EMPTY:
            assert stack.query(expression) == [], f"{label} has series: it is not EMPTY any more"
            continue
        wait_until(f"{expression} gives series", 20, lambda: not stack.query(expression) and "nothing")
        # What the legend speaks of must be among the labels, or all series have one name.
        for series in stack.query(expression):
            wanted = {word.split("}}")[0] for word in target["legendFormat"].split("{{")[1:]}
            assert wanted <= series["metric"].keys(), f"{label}: {series['metric']}"


def test_exemplars_of_latencies_lead_to_traces(stack):
    """The points in the latency panels."""

    def without():
        found = stack.prometheus.get("/api/v1/query_exemplars", query="sconce_request_duration_seconds_bucket", start=0, end=4e9)
        traces = {one["labels"].get("trace_id") for series in found["data"] for one in series["exemplars"]}
        return None if traces and None not in traces else found

    wait_until("there are exemplars", 30, without)
