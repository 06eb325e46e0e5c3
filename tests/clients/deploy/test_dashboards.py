"""The dashboards' queries, asked of a Prometheus that scrapes a Sconce. Grafana itself is not here."""

import contextlib
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
import yaml

from server import sconce, setting
from stack import DEPLOY, load, number, wait_until, write_linear

GRAFANA = DEPLOY / "grafana"
FILES = sorted((GRAFANA / "dashboards").glob("*.json"))
PANELS = [(path.stem, panel) for path in FILES for panel in json.loads(path.read_text())["panels"]]
VARIABLES = {"$job": "sconce", "$__rate_interval": "5s", "$__range": "1m"}
# Of these one at least must have what a panel of a model shows.
MODELS = ["queued", "short", "cached", "text", "cancer", "scale", "rolled", "unsure"]
# What has no series here, and why not. All else must have some.
EMPTY = {
    "Requests, now and a day ago / a day ago": "a day ago it was not there",
    "Mean time in the model, now and a day ago / a day ago": "a day ago it was not there",
    "GPUs at work": "there is no GPU",
    "Memory of GPUs": "there is no GPU",
    "Temperature of GPUs": "there is no GPU",
    "Power of GPUs": "there is no GPU",
}


def write_version(folder, keys, package):
    """A version's folder: `package`, with more keys."""
    shutil.copytree(package, folder)
    text = (folder / "model.toml").read_text()
    (folder / "model.toml").write_text(keys + text)
    return folder


def write_noted_linear(folder, weight):
    """A model of one number of which is noted what it says."""
    write_linear(folder, weight)
    with open(folder / "linear" / "1" / "model.toml", "a") as file:
        file.write('data_policy = "outputs"\nfeedback = { sample = 1.0 }\n')
    return folder / "linear" / "1"


def ask_and_label(stack, model, inputs, label, folder, stop):
    """Asks, and says what was right, until `stop`. `label` gives an outcome of an answer."""
    client = triton.InferenceServerClient(stack.grpc)
    while not stop.is_set():
        outcomes = []
        for _ in range(30):
            answer = client.infer(model, inputs(), headers={"x-tenant-id": "acme"})
            id = answer.get_response().parameters["prediction_id"].string_param
            outcomes.append({"prediction_id": id, **label(answer)})
        file = folder / f"{model}.jsonl"
        file.write_text("".join(json.dumps(one) + "\n" for one in outcomes))
        sconce("feedback", "import", model, file, "--admin", stack.admin)
    client.close()


@pytest.fixture(scope="module")
def everything(stack, tmp_path_factory):
    """The stack while all that a dashboard shows happens: besides what happens there anyway, requests for a model with a route, two
    variants, a shadow and a monitor; labels; a shadow that fails; a rollout; a queue that is full; answers from a cache; what people decide."""
    folder = tmp_path_factory.mktemp("everything")
    run = lambda *words: sconce(*words, "--admin", stack.admin)
    demo = Path(setting("SCONCE_DEMO")) / "breast_cancer"
    for version in "12":
        package = write_version(folder / f"cancer-{version}", 'data_policy = "outputs"\nfeedback = { sample = 1.0 }\n', demo / version)
        run("model", "push", "cancer", package, "--promote", f"v{version}")
        run("model", "push", "rolled", demo / version, "--promote", "champion" if version == "1" else "next")
    run("traffic", "set", "cancer", "--split", "old@1=50", "--split", "new@2=50")
    run("shadow", "start", "cancer", "--candidate", "2")
    run("monitor", "set", "cancer", "--version", "1", "--learn", "200", "--pane", "50", "--panes", "4", "--rows-per-second", "1000000")
    # What the second makes of two is more than a number can hold.
    for version, weight in (("1", 1.0), ("2", 3e38)):
        package = write_noted_linear(folder / f"scale-{version}", weight)
        run("model", "push", "scale", package, "--promote", "champion" if version == "1" else "next", "--metric", "mae=0.1")
    run("shadow", "start", "scale", "--candidate", "2")
    plan = folder / "plan.json"
    stages = [{"percent": 10, "min_samples": 1_000_000}, {"percent": 100, "min_samples": 1}]
    plan.write_text(json.dumps({"candidate": "2", "strategy": {"canary": {"stages": stages}}, "gates": [{"metric": "error_rate", "max": 0.5}]}))
    run("rollout", "start", "rolled", "--plan", plan)

    def rows():
        features = triton.InferInput("features", [1, 30], "FP32")
        features.set_data_from_numpy(np.random.default_rng().normal(15.0, 5.0, (1, 30)).astype(np.float32))
        return [features]

    run("model", "push", "unsure", write_version(folder / "unsure", 'review = { automation = "shadow" }\n', demo / "1"), "--promote", "champion")
    client = triton.InferenceServerClient(stack.grpc)
    deferred = client.infer("unsure", rows()).get_response().parameters["prediction_id"].string_param
    client.close()
    run("review", "claim", "unsure")
    run("review", "answer", "unsure", deferred, "--label", "benign")

    text = triton.InferInput("text", [1], "BYTES")
    text.set_data_from_numpy(np.array([b"a good film"], dtype=object))
    stop = threading.Event()
    benign = lambda _: {"label": "benign"}
    sum_of = lambda answer: {"metric": "label", "number": float(answer.as_numpy("prediction")[0][0]) + 0.5}
    askers = [
        threading.Thread(target=ask_and_label, args=(stack, *one, folder, stop))
        for one in (("cancer", rows, benign), ("scale", lambda: number("features", 2.0), sum_of))
    ]
    loads = [
        load(stack.grpc, "short", number("INPUT0", 1.0), callers=4),
        load(stack.grpc, "cached", number("INPUT0", 1.0), pause=0.05),
        load(stack.grpc, "text", [text], pause=0.05),
        load(stack.grpc, "rolled", rows(), pause=0.05),
        load(stack.grpc, "unsure", rows(), pause=0.05),
    ]
    with contextlib.ExitStack() as running:
        for one in loads:
            running.enter_context(one)
        for asker in askers:
            asker.start()
            running.callback(asker.join)
        running.callback(stop.set)
        yield stack
    run("rollout", "abort", "rolled", "--reason", "it was looked at")


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
def test_every_query_gives_series(everything, name, panel):
    for target in panel["targets"]:
        expression = target["expr"]
        for variable, value in VARIABLES.items():
            expression = expression.replace(variable, value)
        models = MODELS if "$model" in expression else [""]
        expressions = [expression.replace("$model", model) for model in models]
        assert "$" not in "".join(expressions)
        series = lambda: next(filter(None, map(everything.query, expressions)), [])
        label = f"{panel['title']} / {target['legendFormat']}"
        if panel["title"] in EMPTY or label in EMPTY:
            assert series() == [], f"{label} has series: it is not EMPTY any more"
            continue
        wait_until(f"{expression} gives series", 30, lambda: not series() and "nothing")
        # What the legend speaks of must be among the labels, or all series have one name.
        for one in series():
            wanted = {word.split("}}")[0] for word in target["legendFormat"].split("{{")[1:]}
            assert wanted <= one["metric"].keys(), f"{label}: {one['metric']}"


def test_exemplars_of_latencies_lead_to_traces(stack):
    """The points in the latency panels."""

    def without():
        found = stack.prometheus.get("/api/v1/query_exemplars", query="sconce_request_duration_seconds_bucket", start=0, end=4e9)
        traces = {one["labels"].get("trace_id") for series in found["data"] for one in series["exemplars"]}
        return None if traces and None not in traces else found

    wait_until("there are exemplars", 30, without)
