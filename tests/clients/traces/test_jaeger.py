"""A caller with OpenTelemetry's SDK, Sconce and a collector: one trace in Jaeger's API, and a batch in its user interface."""

import json
import os
import shutil
import struct
import subprocess
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import pytest
import tritonclient.grpc
from grpc import Compression
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import inject
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind

from server import Registry, link_or_copy, setting, write_model

STAGES = ["route", "prepare", "queue", "execute", "encode"]
# The longest anything here may take, in seconds.
PATIENCE = 30


class Receiver:
    """The collector, and what Jaeger's API says of a trace."""

    def __init__(self):
        self.process = subprocess.Popen([setting("SCONCE_TRACE_RECEIVER")], stdout=subprocess.PIPE, text=True)
        addresses = json.loads(self.process.stdout.readline())
        self.otlp, self.jaeger = f"http://{addresses['otlp']}", f"http://{addresses['jaeger']}"

    def operations(self, service: str, name: str) -> list:
        """The traces of a service that begin with an operation: their spans."""
        query = f"api/traces?service={service}&operation={name}&limit=100"
        with urllib.request.urlopen(f"{self.jaeger}/{query}", timeout=PATIENCE) as answer:
            return [trace["spans"] for trace in json.load(answer)["data"]]

    def trace(self, trace_id: str, spans: int) -> dict:
        """The spans of a trace by their ids, once there are so many."""
        deadline = time.monotonic() + PATIENCE
        while True:
            found = []
            try:
                with urllib.request.urlopen(f"{self.jaeger}/api/traces/{trace_id}", timeout=PATIENCE) as answer:
                    [trace] = json.load(answer)["data"]
                    found = trace["spans"]
                    for span in found:
                        span["service"] = trace["processes"][span["processID"]]["serviceName"]
            except urllib.error.HTTPError as error:
                assert error.code == 404, error
            if len(found) >= spans:
                assert len(found) == spans, found
                return {span["spanID"]: span for span in found}
            assert time.monotonic() < deadline, f"expected {spans} spans of {trace_id}, got {found}"
            time.sleep(0.05)


def references(span, kind):
    return [(one["traceID"], one["spanID"]) for one in span["references"] or [] if one["refType"] == kind]


def tags(span):
    return {tag["key"]: tag["value"] for tag in span["tags"]}


@pytest.fixture(scope="module")
def receiver():
    started = Receiver()
    yield started
    started.process.kill()
    started.process.wait()


@pytest.fixture
def batch(receiver, start_server):
    """Two calls of MiniLM that run in one batch, each in a trace that its caller began: the traces of both, and the batch's."""

    def write(folder: Path):
        # Two requests make a batch, and nothing else does for a long time.
        write_model(folder, "minilm", max_batch_size=2, max_queue_delay_ms=60_000)
        shutil.copytree(setting("SCONCE_MINILM"), folder / "minilm" / "1", copy_function=link_or_copy, dirs_exist_ok=True)

    server = start_server(write, SCONCE__TRACES__ENDPOINT=receiver.otlp, SCONCE__TRACES__RATIO="0.0")
    provider = TracerProvider(resource=Resource.create({"service.name": "caller"}))
    exporter = OTLPSpanExporter(endpoint=receiver.otlp, insecure=True, compression=Compression.Gzip)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("test")

    def call(text: str) -> str:
        # Long enough for the model to be what takes the time.
        data = numpy.array([[text.encode() * 20]], object)
        value = tritonclient.grpc.InferInput("text", [1, 1], "BYTES").set_data_from_numpy(data)
        with (
            tritonclient.grpc.InferenceServerClient(server.grpc) as client,
            tracer.start_as_current_span("answer a question"),
            tracer.start_as_current_span("embed", kind=SpanKind.CLIENT) as span,
        ):
            headers: dict[str, str] = {}
            inject(headers)
            client.infer("minilm", [value], headers=headers, client_timeout=PATIENCE)
        return f"{span.get_span_context().trace_id:032x}"

    with ThreadPoolExecutor(2) as pool:
        ids = list(pool.map(call, ["A candle is held by a sconce. ", "A lamp needs none. "]))
    provider.shutdown()
    server.terminate()
    server.assert_clean_exit()
    traces = [receiver.trace(trace_id, spans=8) for trace_id in ids]
    [execute] = [span for span in traces[0].values() if span["operationName"] == "execute"]
    [(batch_trace, batch_span)] = references(execute, "FOLLOWS_FROM")
    return traces, receiver.trace(batch_trace, spans=1)[batch_span]


def test_a_call_is_one_trace_and_its_batch_links_to_it_and_back(batch):
    traces, batch = batch
    executed = []
    for spans in traces:
        by_name = {span["operationName"]: span for span in spans.values()}
        root, embed = by_name["answer a question"], by_name["embed"]
        server = by_name["inference.GRPCInferenceService/ModelInfer"]
        assert {span["service"] for span in (root, embed)} == {"caller"}
        assert not references(root, "CHILD_OF")
        assert references(embed, "CHILD_OF") == [(root["traceID"], root["spanID"])]
        assert references(server, "CHILD_OF") == [(embed["traceID"], embed["spanID"])]
        assert embed["startTime"] <= server["startTime"]
        assert tags(server)["sconce.model"] == "minilm" and tags(server)["sconce.kept_for"] == "parent"

        stages = [by_name[name] for name in STAGES]
        assert all(stage["service"] == "sconce" for stage in stages)
        assert all(references(stage, "CHILD_OF") == [(server["traceID"], server["spanID"])] for stage in stages)
        starts = [stage["startTime"] for stage in stages]
        assert starts == sorted(starts)
        total = sum(stage["duration"] for stage in stages)
        assert abs(total - server["duration"]) <= 0.05 * server["duration"], (total, server["duration"])

        execute = by_name["execute"]
        assert references(execute, "FOLLOWS_FROM") == [(batch["traceID"], batch["spanID"])]
        executed.append((execute["traceID"], execute["spanID"]))
    assert batch["operationName"] == "batch" and not references(batch, "CHILD_OF")
    assert sorted(references(batch, "FOLLOWS_FROM")) == sorted(executed)
    about = tags(batch)
    assert (about["sconce.batch.requests"], about["sconce.batch.rows"]) == (2, 2)
    assert about["sconce.batch.tokens"] > 100 and about["sconce.batch.close_reason"] == "full"


def test_a_promotion_holds_the_load_it_caused(receiver, tmp_path):
    traced = {"SCONCE__TRACES__ENDPOINT": receiver.otlp, "SCONCE__TRACES__SERVICE_NAME": "registry"}
    server = Registry(tmp_path / "data", **traced)
    try:
        package = Path(setting("SCONCE_DEMO")) / "breast_cancer" / "1"
        server.run("model", "push", "breast_cancer", package)
        server.run("model", "promote", "breast_cancer", "1")
        server.terminate()
        server.assert_clean_exit()
    finally:
        server.process.kill()
    # What was kept is sent before the server ends.
    [promotion] = receiver.operations("registry", "promote")
    by_name = {span["operationName"]: span for span in promotion}
    root, load = by_name["promote"], by_name["load"]
    assert not references(root, "CHILD_OF")
    assert references(load, "CHILD_OF") == [(root["traceID"], root["spanID"])]
    assert root["startTime"] <= load["startTime"]
    assert load["startTime"] + load["duration"] <= root["startTime"] + root["duration"]
    about = tags(load)
    assert (about["sconce.model"], about["sconce.version"]) == ("breast_cancer", "1")


@pytest.mark.skipif(not os.environ.get("SCONCE_FULL"), reason="needs a browser: bash tests/run --full")
def test_a_batch_in_jaegers_user_interface(batch, receiver, tmp_path):
    """What README shows: `SCONCE_SCREENSHOT` says where else the picture is to go."""
    _, batch = batch
    picture = Path(os.environ.get("SCONCE_SCREENSHOT", tmp_path / "batch.png"))
    driver = Path(__file__).with_name("look.js")
    page = f"{receiver.jaeger}/trace/{batch['traceID']}"
    seen = subprocess.run(["node", driver, page, picture], capture_output=True, text=True, timeout=100)
    assert seen.returncode == 0, seen.stderr
    # The batch, what it says of itself, and its way to both requests.
    for part in ["batch", "sconce.batch.close_reason", "sconce.batch.tokens", "References (2)"]:
        assert part in seen.stdout, f"{part} not in {seen.stdout}"
    data = picture.read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and width >= 1000 and height >= 300
