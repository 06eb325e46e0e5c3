"""What a model leaves to people, from the command line."""

import csv
import json
import queue
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from server import Registry, sconce, setting

MODEL = "breast_cancer"
DEMO = Path(setting("SCONCE_DEMO"))
PATIENCE_SECONDS = 60


@pytest.fixture
def registry(tmp_path):
    package = shutil.copytree(DEMO / MODEL / "1", tmp_path / "package")
    own = (package / "model.toml").read_text()
    review = '[review]\nautomation = "partial"\nmin_confidence = 0.9\n'
    (package / "model.toml").write_text(f'data_policy = "all"\n{own}\n{review}')
    registry = Registry(tmp_path / "data", SCONCE__ALLOW_PLAINTEXT="true")
    registry.run("model", "push", MODEL, package, "--promote", "champion")
    yield registry
    registry.process.kill()
    registry.process.wait()


def test_people_decide_what_the_model_is_not_sure_of(registry):
    with open(DEMO / "holdout.csv") as file:
        rows = [[float(value) for value in row[:-1]] for row in list(csv.reader(file))[1:]]
    deferred, asked = [], 0
    while len(deferred) < 2:
        given = f"features={json.dumps([rows[asked]])}"
        asked += 1
        answer = json.loads(sconce("infer", MODEL, "--input", given, "--server", registry.grpc))
        if answer["outputs"]:
            assert max(answer["outputs"]["probabilities"]["data"]) >= 0.9
        else:
            assert (answer["review"], answer["review_cause"]) == ("deferred", "confidence")
            deferred.append(answer["prediction_id"])
    listed = [json.loads(line) for line in registry.run("review", "list", "--json").splitlines()]
    assert [it["prediction_id"] for it in listed] == deferred
    assert all(it["cause"] == "confidence" and it["got"] < it["bound"] == 0.9 for it in listed)

    told = registry.run("review", "claim", MODEL)
    assert deferred[0] in told and "features" in told and "probabilities" in told
    assert "tester until" in registry.run("review", "list", MODEL)
    answer = ("review", "answer", MODEL, deferred[0], "--label", "malignant")
    assert "tester has it" in sconce(*answer, "--admin", registry.admin, "--actor", "another", code=1)
    assert "recorded" in registry.run(*answer)
    assert "does not wait" in registry.run(*answer, code=1)
    assert "reviewer \"tester\"" in registry.run("feedback", "list", MODEL, "--known")
    assert "somebody else" in registry.run("review", "skip", MODEL, deferred[1])
    assert "nothing waits" in registry.run("review", "claim", MODEL)

    # Who watches is told, once it does.
    command = [setting("SCONCE_BIN"), "review", "watch", "--json", "--admin", registry.admin]
    watch = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    lines = queue.Queue()
    threading.Thread(target=lambda: lines.put(watch.stdout.readline()), daemon=True).start()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while lines.empty():
        sconce("infer", MODEL, "--input", given, "--server", registry.grpc)
        assert time.monotonic() < deadline
    watch.kill()
    watch.wait()
    event = json.loads(lines.get())
    assert event["what"] == "added" and event["model"] == MODEL and event["waiting"] >= 2
