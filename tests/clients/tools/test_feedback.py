"""Feedback from the command line, and that nothing that was acknowledged is lost by a kill."""

import json
from pathlib import Path

import pytest

from server import Registry, sconce, setting

MODEL = "breast_cancer"
PACKAGES = Path(setting("SCONCE_DEMO")) / MODEL
ROW = json.dumps([[0.0] * 30])


def ask(registry):
    words = ["--input", f"features={ROW}", "--server", registry.grpc]
    return json.loads(sconce("infer", MODEL, *words))["prediction_id"]


@pytest.fixture
def start(tmp_path):
    servers = []

    def start():
        servers.append(Registry(tmp_path / "data"))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


def test_what_was_acknowledged_is_there_after_a_kill(start, tmp_path):
    registry = start()
    registry.run("model", "push", MODEL, PACKAGES / "1", "--promote", "champion")
    ids = [ask(registry) for _ in range(6)]
    # One by one, and from files of both kinds; the same file again changes nothing.
    sent = registry.json("feedback", "send", MODEL, ids[0], "--label", "benign")
    assert sent == {"recorded": 1, "replaced": 0, "unknown": 1}
    registry.run("feedback", "send", MODEL, ids[1], "--converted")
    lines = [{"prediction_id": ids[2], "metric": "cost", "number": -1.5}, {"prediction_id": ids[3], "converted": False}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "x.csv").write_text(f"prediction_id,label,at_ms\n{ids[4]},malignant,1700000000000\n{ids[5]},benign,\n")
    assert registry.json("feedback", "import", MODEL, tmp_path / "x.jsonl")["recorded"] == 2
    assert registry.json("feedback", "import", MODEL, tmp_path / "x.jsonl")["replaced"] == 2
    assert "2 outcomes recorded" in registry.run("feedback", "import", MODEL, tmp_path / "x.csv")
    registry.process.kill()
    registry.process.wait()

    registry = start()
    rows = [json.loads(line) for line in registry.run("feedback", "list", MODEL, "--json").splitlines()]
    assert [row["prediction_id"] for row in rows] == ids
    told = [(one["metric"], one["value"]) for row in rows for one in row["outcomes"]]
    expected = [("label", "benign"), ("conversion", True), ("cost", -1.5), ("conversion", False)]
    assert told == [*expected, ("label", "malignant"), ("label", "benign")]
    assert rows[4]["outcomes"][0]["at_ms"] == 1_700_000_000_000
    table = registry.run("feedback", "list", MODEL, "--last", "1h", "--known")
    assert len(table.splitlines()) == 7 and "cost -1.5" in table
    # What is wrong is said with its line, and the number before it is not lost.
    (tmp_path / "bad.csv").write_text(f"prediction_id,label\n{ids[0]},\n")
    assert "line 2: expected one of" in registry.run("feedback", "import", MODEL, tmp_path / "bad.csv", code=1)


def test_an_experiment_is_declared_read_and_stopped(start, tmp_path):
    registry = start()
    for version in "12":
        registry.run("model", "push", MODEL, PACKAGES / version, "--promote", f"v{version}")
    spec = tmp_path / "experiment.toml"
    spec.write_text(
        'arms = [{ variant = "old", weight = 90 }, { variant = "new", weight = 10 }]\n'
        'metrics = [{ name = "conversion", kind = "conversion" }, { name = "revenue", kind = "mean", max_harm = 0.5 }]\n'
        'design = "always_valid"\n'
    )
    start_it = ("experiment", "start", MODEL, "--file", spec)
    assert "it has no route" in registry.run(*start_it, code=1)
    registry.run("traffic", "set", MODEL, "--split", "old@1=50", "--split", "new@2=50")
    assert "arms[0].weight: the route gives it 50" in registry.run(*start_it, code=1)
    registry.run("traffic", "set", MODEL, "--split", "old@1=90", "--split", "new@2=10")
    assert "not decided yet" in registry.run(*start_it)
    for _ in range(3):
        ask(registry)
    assert "runs since" in registry.run("experiment", "status", MODEL)
    table = registry.run("experiment", "report", MODEL)
    assert "guardrail" in table and "undecided" in table
    assert registry.json("experiment", "stop", MODEL)["running"] is False
    registry.process.kill()
    registry.process.wait()
    registry = start()
    report = registry.json("experiment", "report", MODEL)
    assert report["stopped_ms"] >= report["started_ms"] > 0 and report["spec"]["arms"][0]["variant"] == "old"
    assert report["report"]["advice"] == "go_on"
