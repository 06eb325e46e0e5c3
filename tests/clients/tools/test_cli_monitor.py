"""A served model is watched from the command line: a reference from a file, a drift half-way, and whoever looks is told."""

import csv
import json
import random
import subprocess
import time
from pathlib import Path

import pytest

from server import Registry, sconce, setting

MODEL = "breast_cancer"
DEMO = Path(setting("SCONCE_DEMO"))
PATIENCE_SECONDS = 60


@pytest.fixture
def registry(tmp_path):
    registry = Registry(tmp_path / "data")
    registry.run("model", "push", MODEL, DEMO / MODEL / "1", "--promote", "champion")
    yield registry
    registry.process.kill()
    registry.process.wait()


def rows(draw, count, factor=1.0):
    """Held-out rows, none like another; the first feature of each is larger by a factor."""
    with open(DEMO / "holdout.csv") as file:
        names, *held_out = csv.reader(file)
    numbers = [[float(value) for value in row[:-1]] for row in held_out]
    drawn = [[value * draw.gauss(1, 0.01) for value in draw.choice(numbers)] for _ in range(count)]
    return names[:-1], [[row[0] * factor, *row[1:]] for row in drawn]


def ask(registry, draw, factor=1.0):
    sconce("infer", MODEL, "--input", f"features={json.dumps(rows(draw, 64, factor)[1])}", "--server", registry.grpc)


def output(registry, *words):
    """The exit code and the output."""
    command = [setting("SCONCE_BIN"), *map(str, words), "--admin", registry.admin]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    return done.returncode, done.stdout


def report(registry, *words):
    return output(registry, "drift", "report", MODEL, *words)


def until(registry, draw, factor, code, state):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        found, text = report(registry, "--json")
        if found == code and json.loads(text)["verdict"]["state"] == state:
            return json.loads(text)
        assert time.monotonic() < deadline, text
        for _ in range(4):
            ask(registry, draw, factor)


def test_a_drift_half_way_is_reported_where_people_look(registry, tmp_path):
    draw = random.Random(7)
    names, fitted = rows(draw, 4000)
    with open(tmp_path / "train.csv", "w") as file:
        csv.writer(file).writerows([names, *fitted])
    sconce("monitor", "fit", "--data", tmp_path / "train.csv", "--out", tmp_path / "reference.json")
    window = ["--pane", "512", "--panes", "4", "--rows-per-second", "1000000"]
    told = registry.run("monitor", "set", MODEL, "--reference", tmp_path / "reference.json", *window)
    assert "not enough evidence" in told
    # Nothing was judged yet, or too little came: that is no drift.
    ask(registry, draw)
    assert report(registry)[0] in (0, 2)

    stable = until(registry, draw, 1.0, 0, "stable")
    assert {feature["feature"] for feature in stable["verdict"]["features"]} == set(names)
    drifted = until(registry, draw, 1.5, 1, "drifted")
    changed = [feature for feature in drifted["verdict"]["features"] if feature["state"] == "drifted"]
    assert [feature["feature"] for feature in changed] == ["mean_radius"]

    page = tmp_path / "drift.html"
    code, text = report(registry, "--html", page)
    assert code == 1 and "mean_radius" in text and "drifted" in text
    html = page.read_text()
    assert "<svg" in html and "mean_radius" in html and "http://" not in html.replace("http://www.w3.org", "")
    assert report(registry, "--md")[1].startswith("# ")
    assert "mean_radius" in registry.run("monitor", "status", MODEL)
    history = registry.json("monitor", "history", MODEL)
    assert [entry["state"] for entry in history] == ["stable", "drifted"]
    assert [feature["feature"] for feature in history[1]["features"]] == ["mean_radius"]
    listed = registry.json("monitor", "list")
    assert [(it["model"], it["version"], it["state"]) for it in listed] == [(MODEL, 1, "drifted")]
    code, health = output(registry, "health")
    assert code == 3 and "SconceDrift" in health and "mean_radius" in health

    registry.run("monitor", "remove", MODEL)
    code, _ = report(registry)
    assert code == 2
