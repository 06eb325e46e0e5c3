"""Sconce beside MLServer: what scikit-learn answers there is held against the same model on Candle, against a worse one, and is itself
a shadow that dies."""

import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import joblib
import numpy
import pytest
import tritonclient.grpc as triton
from safetensors.numpy import save_file
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from server import Registry

MODEL = "cancer"
PATIENCE_SECONDS = 60
IN_FLIGHT = 8
ROWS, TRUTH = load_breast_cancer(return_X_y=True)
ROWS = ROWS.astype(numpy.float32)
# What another server answers, by the names that our callers know.
REMOTE = """
family = "remote"

[remote]
url = "http://{address}"
model = "{model}"
outputs = {{ predict_proba = "probabilities" }}

[[inputs]]
name = "features"
datatype = "FP32"
shape = [-1, 30]

[[outputs]]
name = "probabilities"
datatype = "FP32"
shape = [-1, 2]
"""


class MLServer:
    """An MLServer process with one scikit-learn model."""

    def __init__(self, folder: Path, model):
        (folder / MODEL).mkdir(parents=True)
        joblib.dump(model, folder / MODEL / "model.joblib")
        kind = {"name": MODEL, "implementation": "mlserver_sklearn.SKLearnModel", "parameters": {"uri": "./model.joblib"}}
        (folder / MODEL / "model-settings.json").write_text(json.dumps(kind))
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
        http, port, metrics = [it.getsockname()[1] for it in sockets]
        settings = {"host": "127.0.0.1", "http_port": http, "grpc_port": port, "metrics_port": metrics}
        (folder / "settings.json").write_text(json.dumps(settings | {"parallel_workers": 0, "debug": False}))
        for it in sockets:
            it.close()
        self.address = f"127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [Path(sys.executable).with_name("mlserver"), "start", folder],
            cwd=folder,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        ready, self.log = queue.Queue(), []
        threading.Thread(target=self._read_log, args=(ready,), daemon=True).start()
        for _ in range(2):
            assert ready.get(timeout=PATIENCE_SECONDS), "".join(self.log)

    def _read_log(self, ready):
        for line in self.process.stdout:
            self.log.append(line)
            if "Loaded model" in line or "gRPC server running" in line:
                ready.put(True)
        ready.put(False)

    def kill(self):
        self.process.kill()
        self.process.wait()


def fit(columns):
    """A model of these columns, which takes all of them."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(ROWS[:, columns], TRUTH)
    weights = numpy.zeros((1, ROWS.shape[1]))
    weights[:, columns] = model[-1].coef_
    return model, weights, model[-1].intercept_


def package(folder: Path, text: str, **tensors) -> Path:
    folder.mkdir()
    (folder / "model.toml").write_text(text)
    if tensors:
        save_file({name.replace("_", "."): value for name, value in tensors.items()}, folder / "model.safetensors")
    return folder


def candle(folder: Path, weights, intercept) -> Path:
    """The same as a package of ours: the scaler becomes the features' means and deviations, the regression a layer."""
    scaler = StandardScaler().fit(ROWS)
    text = 'family = "tabular"\ntask = "classification"\nlabels = ["malignant", "benign"]\n'
    for at, (mean, deviation) in enumerate(zip(scaler.mean_, scaler.scale_)):
        text += f'[[features]]\nname = "feature_{at}"\ntype = "numeric"\nmean = {mean}\nstd = {deviation}\n'
    layer = {"layers_0_weight": weights, "layers_0_bias": intercept}
    return package(folder, text, **{name: value.astype(numpy.float32) for name, value in layer.items()})


FULL = fit(list(range(30)))
POOR = fit([0, 1, 2])


@pytest.fixture
def mlserver(tmp_path):
    server = MLServer(tmp_path / "mlserver", FULL[0])
    yield server
    server.kill()


@pytest.fixture
def registry(tmp_path, mlserver):
    """Version 1 is MLServer's, 2 the same on Candle, 3 one that knows three columns."""
    registry = Registry(tmp_path / "data", SCONCE__REMOTE_HOSTS=json.dumps([mlserver.address]))
    for folder in (
        package(tmp_path / "1", REMOTE.format(address=mlserver.address, model=MODEL)),
        candle(tmp_path / "2", *FULL[1:]),
        candle(tmp_path / "3", *POOR[1:]),
    ):
        registry.run("model", "push", MODEL, folder)
    yield registry
    registry.process.kill()
    registry.process.wait()


def ask(registry, rows, version, count):
    """Asks about `count` rows, one by one, a few in flight. Every answer is scikit-learn's. Returns the predictions' ids."""
    chosen = [at % len(rows) for at in range(count)]
    expected = FULL[0].predict_proba(rows)

    def one(client, at):
        features = triton.InferInput("features", [1, 30], "FP32")
        features.set_data_from_numpy(rows[at : at + 1])
        answer = client.infer(MODEL, [features], client_timeout=PATIENCE_SECONDS)
        assert answer.get_response().model_version == version
        probabilities = answer.as_numpy("probabilities")
        assert probabilities.dtype == numpy.float32 and numpy.abs(probabilities - expected[at]).max() < 1e-5
        return answer.get_response().parameters["prediction_id"].string_param

    with triton.InferenceServerClient(registry.grpc) as client, ThreadPoolExecutor(IN_FLIGHT) as callers:
        return list(callers.map(lambda at: one(client, at), chosen))


def report(registry):
    return registry.json("shadow", "report", MODEL)["shadows"][0]


def until(registry, version, holds):
    """Asks until the report of the shadow is as wanted. The report, and what was asked."""
    deadline, asked = time.monotonic() + PATIENCE_SECONDS, []
    while True:
        asked += ask(registry, ROWS, version, 128)
        found = report(registry)
        if holds(found):
            return found, asked
        assert time.monotonic() < deadline, found


def verdict(found):
    return found["comparison"] and found["comparison"]["verdict"]


def test_the_same_model_on_candle_agrees_with_mlserver(registry):
    registry.run("model", "promote", MODEL, "1")
    registry.run("shadow", "start", MODEL, "--candidate", "2")
    found, _ = until(registry, "1", lambda found: verdict(found) == "equal")
    assert found["failed"] == {} and found["version"] == 2 and found["compared_with"] == {"1": found["compared"]}
    comparison = found["comparison"]
    assert [(it["primary"], it["candidate"]) for it in comparison["endings"]] == [("OK", "OK")]
    (output,) = comparison["outputs"]
    assert (output["name"], output["kind"]) == ("probabilities", "distribution")
    assert output["top1"]["count"] == output["top1"]["of"] == comparison["pairs"] >= 500
    assert [output[it]["count"] for it in ("mismatched", "disagreeing", "breaches")] == [0, 0, 0]
    assert output["absolute"]["max"] < 1e-5
    assert all(cell["primary"] == cell["candidate"] for cell in output["classes"]["cells"])


def test_a_worse_model_is_found_to_disagree_with_evidence(registry):
    registry.run("model", "promote", MODEL, "1")
    registry.run("shadow", "start", MODEL, "--candidate", "3", "--name", "three-columns")
    found, asked = until(registry, "1", lambda found: verdict(found) == "different")
    comparison = found["comparison"]
    finding = next(it for it in comparison["findings"] if it["name"] == "disagreement of output probabilities")
    assert finding["verdict"] == "different" and finding["interval"]["low"] > finding["margin"]
    # As often as the two are of another opinion on these rows.
    truth = numpy.mean(FULL[0].predict(ROWS) != POOR[0].predict(ROWS[:, :3]))
    assert finding["interval"]["low"] <= truth <= finding["interval"]["high"]
    (output,) = comparison["outputs"]
    assert output["disagreeing"]["count"] > 0 and output["js"]["mean"] > 0.01
    assert comparison["divergent"] and {it["id"] for it in comparison["divergent"]} <= set(asked)
    assert "different" in registry.run("shadow", "report", MODEL, "--md")


def test_mlserver_dies_as_a_shadow_and_callers_notice_nothing(registry, mlserver):
    registry.run("model", "promote", MODEL, "2")
    registry.run("shadow", "start", MODEL, "--candidate", "1")
    found, _ = until(registry, "2", lambda found: found["compared"] > 50)
    assert found["failed"] == {} and found["comparison"]["outputs"][0]["disagreeing"]["count"] == 0
    with ThreadPoolExecutor(1) as aside:
        going_on = aside.submit(ask, registry, ROWS, "2", 256)
        mlserver.kill()
        going_on.result()
    found, _ = until(registry, "2", lambda found: "held_back" in found["dropped"])
    assert set(found["failed"]) == {"UNAVAILABLE"}
    assert any(mlserver.address in it for it in found["explanations"])
    endings = {(it["primary"], it["candidate"]): it["count"] for it in found["comparison"]["endings"]}
    assert endings["OK", "UNAVAILABLE"] == found["failed"]["UNAVAILABLE"]
    assert mlserver.address in registry.run("shadow", "report", MODEL, "--md")
