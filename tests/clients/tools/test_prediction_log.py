"""The prediction log as its readers read it: a real run, killed in the middle, through pandas and DuckDB."""

import base64
import json
import math
import time
import urllib.request

import duckdb
import pandas
import pytest

from server import START_SECONDS, Server, write_model
from test_tools import infer

WRITTEN = 'sconce_prediction_log_records_total{sink="files",status="written"}'


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Starts a server that logs everything to the folder `log`, with its models in `models`."""
    log, models = tmp_path / "log", tmp_path / "models"
    for name, datatype in {"floats": "FP32", "uints": "UINT64", "bytes": "BYTES"}.items():
        write_model(models, name, family="identity", datatype=datatype, data_policy="all")
    for key, value in {"DIR": log, "SAMPLE": "1.0", "FLUSH_SECONDS": "1"}.items():
        monkeypatch.setenv(f"SCONCE__PREDICTION_LOG__{key}", str(value))
    monkeypatch.setenv("SCONCE__ALLOW_PLAINTEXT", "true")
    started = []

    def start():
        started.append(Server(models))
        return started[-1]

    yield start, log
    for one in started:
        one.process.kill()
        one.process.wait()


def ask(server, model, datatype, shape, contents):
    tensor = {"name": "INPUT0", "datatype": datatype, "shape": shape, "contents": contents}
    answer = json.loads(infer(server, {"model_name": model, "inputs": [tensor]}))
    return answer["parameters"]["prediction_id"]["stringParam"]


def until_written(server, count):
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        text = urllib.request.urlopen(f"http://{server.http}/metrics", timeout=30).read().decode()
        if f"{WRITTEN} {count}\n" in text:
            return
    raise AssertionError(f"not {count} records written: {text}")


def test_what_a_killed_server_flushed_is_read_by_pandas_and_duckdb(run):
    start, log = run
    server = start()
    floats = ask(server, "floats", "FP32", [1, 4], {"fp32_contents": ["NaN", "-Infinity", 0.1, -2.5]})
    uints = ask(server, "uints", "UINT64", [2, 1], {"uint64_contents": ["18446744073709551615", "0"]})
    until_written(server, 2)
    raw = [b"\xff\x00text", b"", "ü".encode()]
    texts = ask(server, "bytes", "BYTES", [1, 3], {"bytes_contents": [base64.b64encode(one).decode() for one in raw]})
    until_written(server, 3)
    # What is being written has a name of its own, and no reader of whole files finds it.
    assert not list(log.glob("*.parquet")) and len(list(log.glob("*.parquet.open"))) == 1
    server.process.kill()
    server.process.wait()

    server = start()
    # Only what the killed server left: the next one has not been asked yet.
    (whole,) = log.glob("*.parquet")
    frame = pandas.read_parquet(whole).set_index("prediction_id")
    assert list(frame.index) == [floats, uints, texts]
    assert list(frame["model"]) == ["floats", "uints", "bytes"]
    assert set(frame["status"]) == {"OK"} and set(frame["version"]) == {1}
    assert frame["variant"].isna().all() and frame["tenant"].isna().all()
    assert (frame["latency_us"] > 0).all()
    age = pandas.Timestamp.now(tz="UTC") - frame["time"]
    assert (age > pandas.Timedelta(0)).all() and (age < pandas.Timedelta(minutes=5)).all()

    (tensor,) = frame.loc[floats, "outputs"]
    assert (tensor["name"], tensor["datatype"], list(tensor["shape"])) == ("OUTPUT0", "FP32", [1, 4])
    nan, low, tenth, last = tensor["floats"]
    assert math.isnan(nan) and low == -math.inf and last == -2.5
    # The nearest FP32, widened exactly.
    assert tenth == 0.10000000149011612
    assert tensor["ints"] is None and tensor["uints"] is None and tensor["bytes"] is None
    (tensor,) = frame.loc[uints, "inputs"]
    assert list(tensor["uints"]) == [2**64 - 1, 0] and tensor["floats"] is None
    (tensor,) = frame.loc[texts, "inputs"]
    assert [bytes(one) for one in tensor["bytes"]] == raw

    ask(server, "floats", "FP32", [1, 1], {"fp32_contents": [7.0]})
    server.terminate()
    server.assert_clean_exit()
    everything = f"read_parquet('{log}/*.parquet')"
    assert duckdb.sql(f"select count(*), count(distinct prediction_id) from {everything}").fetchall() == [(4, 4)]
    query = f"select list(x order by time) from (select time, unnest(outputs[1].floats) as x from {everything})"
    nan, *others = duckdb.sql(query).fetchall()[0][0]
    assert math.isnan(nan) and others == [-math.inf, 0.10000000149011612, -2.5, 7.0]
    read = duckdb.sql(f"select inputs[1].bytes, inputs[1].uints from {everything} order by time").fetchall()
    assert read == [(None, None), (None, [2**64 - 1, 0]), (raw, None), (None, None)]
    assert not list(log.glob("*.open")) and not list(log.glob("*.footer*"))
