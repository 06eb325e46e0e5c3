"""No tensor content in logs, at the finest level, whatever becomes of a request."""

import collections
import json
import urllib.request
from pathlib import Path
from time import monotonic

import grpc
import numpy
import pytest
import tritonclient.grpc
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
from tritonclient.utils import InferenceServerException

from server import STOP_SECONDS, Server, sconce, write_model
from wire import PATIENCE, request, tensor

# What nobody but a caller says. As numbers: exact in FP32, and as an INT64.
TEXT = "zanzibar-7319-marker"
NUMBER = 8391.5625
INTEGER = 918273645546372819
MARKERS = (TEXT, str(NUMBER), str(INTEGER), "8391.56")
ENSEMBLE = """
family = "ensemble"
[[inputs]]
name = "x"
datatype = "FP32"
shape = [-1, -1]
[[outputs]]
name = "z"
datatype = "FP32"
shape = [-1, -1]
[[steps]]
model = "floats"
inputs = { INPUT0 = "x" }
outputs = { OUTPUT0 = "y" }
[[steps]]
model = "floats"
inputs = { INPUT0 = "y" }
outputs = { OUTPUT0 = "z" }
"""
REMOTE = """
family = "remote"
[remote]
url = "http://{address}"
model = "{model}"
"""
BERT = Path(__file__).parents[3] / "crates/sconce-candle/tests/data/bert_classification"


def write(folder, **texts):
    for name, text in texts.items():
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / "model.toml").write_text(text)


@pytest.fixture
def servers(tmp_path):
    """A server behind a server, both of which log all they can, and what they logged."""
    started = []

    def start(name, **texts):
        models = tmp_path / name
        write(models, **texts)
        for kind, datatype in {"floats": "FP32", "ints": "INT64", "texts": "BYTES"}.items():
            write_model(models, kind, family="identity", datatype=datatype, data_policy="all")
        (models / "bert" / "1").mkdir(parents=True)
        for file in BERT.iterdir():
            (models / "bert" / "1" / file.name).write_bytes(file.read_bytes())
        settings = {"LOG__LEVEL": "trace", "LOG__ACCESS": "all", "ALLOW_PLAINTEXT": "true", "REMOTE_HOSTS": '["*"]'}
        # Whoever is to have its events does not answer, which is worth a line.
        settings |= {"DATA": str(tmp_path / f"{name}-data"), "PREDICTION_LOG__SAMPLE": "1.0"}
        settings |= {"PREDICTION_LOG__CLOUDEVENTS": "http://127.0.0.1:9/"}
        server = Server(models, **{f"SCONCE__{key}": value for key, value in settings.items()})
        server.log = collections.deque()
        started.append(server)
        return server

    yield start
    for server in started:
        server.process.kill()
        server.process.wait()


def test_tensor_content_is_in_no_line_of_any_level(servers, tmp_path):
    back = servers("back")
    front = servers("front", pair=ENSEMBLE, **{f"far-{kind}": REMOTE.format(address=back.grpc, model=kind) for kind in ("floats", "texts")})
    for version in ("1", "2"):
        write_model(tmp_path / f"shadowed-{version}", "model", family="identity", data_policy="all")
        run = lambda *words: sconce(*words, "--admin", front.admin)
        run("model", "push", "shadowed", tmp_path / f"shadowed-{version}" / "model" / "1", "--promote", f"v{version}")
    run("shadow", "start", "shadowed", "--candidate", "2")
    number = tensor("INPUT0", numpy.full((1, 2), NUMBER, numpy.float32))
    text = tensor("INPUT0", numpy.array([[TEXT.encode()]], dtype=object))
    words = tensor("text", numpy.array([TEXT.encode()], dtype=object))
    with tritonclient.grpc.InferenceServerClient(front.grpc) as client, grpc.insecure_channel(front.grpc) as channel:
        infer = lambda model, *inputs, **more: client.infer(model, list(inputs), client_timeout=PATIENCE, **more)
        infer("floats", number)
        infer("ints", tensor("INPUT0", numpy.full((1, 2), INTEGER, numpy.int64)))
        infer("texts", text)
        infer("bert", words)
        infer("pair", tensor("x", numpy.full((1, 2), NUMBER, numpy.float32)))
        infer("far-floats", number)
        infer("far-texts", text)
        for _ in range(3):
            infer("shadowed", number)
        # Typed, in a stream, and whatever can be wrong about them.
        stub = GRPCInferenceServiceStub(channel)
        good = request("floats", ("INPUT0", "FP32", [1, 1], {"fp32_contents": [NUMBER]}))
        bad = [
            request("floats", ("INPUT0", "FP32", [1, 3], {"fp32_contents": [NUMBER]})),
            request("floats", ("INPUT0", "INT64", [1, 1], {"int64_contents": [INTEGER]})),
            request("texts", ("INPUT0", "BYTES", [2, 1], {"bytes_contents": [TEXT.encode()]})),
            request("texts", ("INPUT0", "BYTES", [1, 1]), raw=[TEXT.encode()]),
            request("bert", ("text", "BYTES", [1], {"bytes_contents": [b"\xff" + TEXT.encode()]})),
            request("far-floats", ("INPUT0", "FP32", [1, 1, 1], {"fp32_contents": [NUMBER]})),
            request("pair", ("x", "BYTES", [1, 1], {"bytes_contents": [TEXT.encode()]})),
        ]
        stub.ModelInfer(good, timeout=PATIENCE)
        for one in bad:
            with pytest.raises(grpc.RpcError):
                stub.ModelInfer(one, timeout=PATIENCE)
        assert len(list(stub.ModelStreamInfer(iter([good, *bad, good]), timeout=PATIENCE))) == len(bad) + 2
        # Over there is nobody any more.
        back.terminate()
        back.assert_clean_exit()
        with pytest.raises(InferenceServerException):
            infer("far-texts", text)

    compared = 'sconce_shadow_compared_total{model="shadowed",variant="2"} 3\n'
    metrics = lambda: urllib.request.urlopen(f"http://{front.http}/metrics", timeout=PATIENCE).read().decode()
    end = monotonic() + STOP_SECONDS
    while compared not in metrics():
        assert monotonic() < end, metrics()
    front.terminate()
    front.assert_clean_exit()
    for server in (back, front):
        lines = [json.loads(line) for line in server.log]
        assert {line["level"] for line in lines} >= {"TRACE", "DEBUG", "INFO"}
        told = [line for line in lines if line["target"] == "sconce::access"]
        assert len(told) >= 2 and all(line["latency_ms"] >= 0 for line in told)
        found = [text for text in server.log for marker in MARKERS if marker in text]
        assert found == []
    assert {line["status"] for line in told} >= {"OK", "INVALID_ARGUMENT", "UNAVAILABLE"}
