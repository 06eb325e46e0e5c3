"""Requests that a server recorded, replayed against it and against another, and exported for load generators."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from server import DATATYPES, Server, sconce, setting, write_model
from test_tools import SERVICE, grpcurl, output_of

K6_SCRIPT = Path(__file__).parents[3] / "loadtest" / "k6_replay.js"
DEMO = "breast_cancer"
SAMPLE = "[prediction_log]\nsample = 1.0\n"
TENSOR = {"BOOL": [True, False], "UINT8": [255, 0], "UINT16": [65535, 0], "UINT32": [4294967295, 0], "UINT64": [2**53, 7],
          "INT8": [-128, 127], "INT16": [-32768, 1], "INT32": [-7, 2147483647], "INT64": [-(2**53), 9], "FP16": [0.5, -2.0],
          "FP32": [0.1, -1e30], "FP64": [0.1, 1e300], "BF16": [0.5, 3.0], "BYTES": ["text", "ü"]}


@pytest.fixture
def run(tmp_path):
    """Starts a server that records to a folder in the given form, with the demo model's first version and an identity of each datatype."""
    started = []

    def start(form, version=1):
        models = tmp_path / f"models-{len(started)}"
        for datatype in DATATYPES:
            write_model(models, f"identity_{datatype.lower()}", family="identity", datatype=datatype, data_policy="all")
        package = shutil.copytree(Path(setting("SCONCE_DEMO")) / DEMO / str(version), models / DEMO / "1")
        own = (package / "model.toml").read_text()
        (package / "model.toml").write_text(f'data_policy = "all"\n{own}\n{SAMPLE}')
        log = tmp_path / f"log-{len(started)}"
        started.append(Server(
            models, SCONCE__ALLOW_PLAINTEXT="true", SCONCE__PREDICTION_LOG__DIR=str(log), SCONCE__PREDICTION_LOG__SAMPLE="1.0",
            SCONCE__PREDICTION_LOG__FLUSH_SECONDS="1", SCONCE__PREDICTION_LOG__FORMAT=form,
        ))
        return started[-1], log

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


def rows():
    lines = (Path(setting("SCONCE_DEMO")) / "holdout.csv").read_text().splitlines()[1:]
    return [[float(value) for value in line.split(",")[:-1]] for line in lines]


def ask_all(server):
    for datatype, values in TENSOR.items():
        tensor = f"INPUT0={json.dumps([values])}"
        sconce("infer", f"identity_{datatype.lower()}", "--input", tensor, "--server", server.grpc, "--priority", "2")
    for row in rows()[:12]:
        sconce("infer", DEMO, "--input", f"features={json.dumps([row])}", "--server", server.grpc, "--deadline-ms", "20000")
    # Too many rows: refused then, and refused again.
    sconce("infer", "identity_fp32", "--input", f"INPUT0={json.dumps([[1.0]] * 65)}", "--server", server.grpc, code=1)


def until_flushed(log, count):
    """Waits until a replay of what is on disk, while the server still writes it, has so many requests."""
    deadline = time.monotonic() + 60
    command = [setting("SCONCE_BIN"), "replay", str(log), "--export-ghz", os.devnull]
    while time.monotonic() < deadline:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if done.returncode == 0 and f"wrote {count} requests" in done.stdout:
            return
    raise AssertionError(f"not {count} requests: {done.stdout}{done.stderr}")


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_a_recording_replayed_is_equal_and_against_another_model_different(run, form, tmp_path):
    server, log = run(form)
    ask_all(server)
    count = len(TENSOR) + 12 + 1
    until_flushed(log, count)

    replay = ("replay", log, "--server", server.grpc)
    told = json.loads(sconce(*replay, "--rate", "max", "--json"))
    assert (told["verdict"], told["sent"], told["compared"], told["different"]) == ("equal", count, count, 0)
    assert told["not_replayed"] == {} and {it["model"] for it in told["models"]} >= {DEMO, "identity_bytes"}
    (refused,) = [it for it in told["models"] if it["model"] == "identity_fp32"]
    assert {"primary": "INVALID_ARGUMENT", "candidate": "INVALID_ARGUMENT", "count": 1} in refused["comparison"]["endings"]
    # What was replayed was recorded as well, with all that was asked: the same once more.
    server.terminate()
    server.assert_clean_exit()
    second, _ = run(form, version=2)
    page = tmp_path / "page.html"
    told = sconce("replay", log, "--server", second.grpc, "--model", DEMO, "--rate", "max", "--html", page, code=1)
    assert "different: " in told and f"{DEMO}" in told and "p99 now" in told
    text = page.read_text()
    assert "Replay against" in text and text.count("<svg") >= 1 and "<script" not in text
    told = sconce("replay", log, "--server", second.grpc, "--model", DEMO, "--rate", "max", "--md", "--max-different", "1")
    assert told.startswith("# Replay against") and "| then ended | now ended | requests |" in told
    # The likeliest class is the same of both, but for few.
    told = json.loads(sconce("replay", log, "--server", second.grpc, "--model", DEMO, "--decisions", "--rate", "max", "--json",
                             "--max-different", "0.5"))
    assert told["verdict"] == "equal" and told["compared"] == 24

    second.terminate()
    second.assert_clean_exit()
    told = sconce("replay", log, "--server", second.grpc, code=2)
    assert "cannot connect" in told


def test_times_are_kept_and_scaled(run):
    server, log = run("jsonl")
    for _ in range(3):
        sconce("infer", "identity_fp32", "--input", "INPUT0=[[1.5]]", "--server", server.grpc)
        time.sleep(0.5)
    server.terminate()
    server.assert_clean_exit()
    again, _ = run("jsonl")
    for rate, factor in ("1x", 1.0), ("4x", 4.0):
        told = json.loads(sconce("replay", log, "--server", again.grpc, "--rate", rate, "--json"))
        recorded = told["recorded_seconds"]
        assert recorded >= 1.0 and told["verdict"] == "equal"
        # Never early; a busy machine may be late, and says by how much.
        assert recorded / factor <= told["seconds"] < recorded / factor + 5.0 + told["late_ms"] / 1e3


def test_nothing_is_replayed_that_was_not_kept_and_bad_files_are_refused(tmp_path):
    record = {
        "prediction_id": "p", "time": "2026-12-01T00:00:00.000000Z", "model": "m", "version": 1, "variant": None, "tenant": None,
        "status": "OK", "latency_us": 5, "inputs": [], "outputs": [], "review": None,
        "request": {"version": "", "priority": None, "timeout_us": None, "inputs": 1, "keys": []},
    }
    log = tmp_path / "a.jsonl"
    log.write_text(json.dumps(record) + "\n")
    assert "nothing to replay: of 1 requests none has all its inputs (1 inputs not kept)" in sconce("replay", log, code=2)
    log.write_text(json.dumps(record) + "\nbroken\n")
    assert "a.jsonl: line 2: " in sconce("replay", log, code=2)
    assert "--rate" in sconce("replay", log, "--rate", "twice", code=2)


def test_exports_are_taken_by_load_generators(run, tmp_path):
    server, log = run("parquet")
    ask_all(server)
    server.terminate()
    server.assert_clean_exit()
    again, _ = run("parquet")
    ghz, k6 = tmp_path / "ghz.json", tmp_path / "k6.json"
    assert "wrote 27 requests" in sconce("replay", log, "--export-ghz", ghz)
    # ghz itself is not to be had here; grpcurl reads messages with the same library.
    messages = json.loads(ghz.read_text())
    assert len(messages) == 27
    for message in messages[:: len(TENSOR) // 3]:
        answer = json.loads(grpcurl(again, "-d", json.dumps(message), f"{SERVICE}/ModelInfer"))
        assert answer["id"] == message["id"] and answer["modelName"] == message["model_name"]

    sconce("replay", log, "--export-k6", k6, "--model", DEMO, "--header", "x-team=search")
    data = json.loads(k6.read_text())
    assert len(data) == 12 and data[0]["after_ms"] == 0 and data[-1]["after_ms"] > 0
    assert data[0]["metadata"] == {"x-team": "search"} and 0 < data[0]["timeout_ms"] <= 20000
    environment = {**os.environ, "DATA": str(k6), "ADDR": again.grpc, "SPEED": "20"}
    output_of(setting("SCONCE_K6"), "run", "--quiet", "--no-usage-report", K6_SCRIPT, env=environment)
