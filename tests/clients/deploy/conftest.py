import json
import os
import struct
from pathlib import Path

import pytest

from server import Server, write_model
from stack import Stack, load, number


def write_linear(folder: Path, weight: float) -> None:
    """A model of one number: the given weight times it."""
    write_model(folder, "linear", family="tabular")
    header = json.dumps({"0.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}}).encode()
    content = struct.pack("<Q", len(header)) + header + struct.pack("<f", weight)
    (folder / "linear" / "1" / "model.safetensors").write_bytes(content)


@pytest.fixture(scope="session")
def stack(tmp_path_factory):
    """Sconce, Prometheus and Alertmanager, while somebody asks two models.

    `linear` answers more than a number can hold if it is asked for something large: an error of the server's. `queued` answers one
    request in 100 ms, and takes in as many as come. `broken` cannot be loaded. Traces and events go to where nobody listens."""
    folder = tmp_path_factory.mktemp("stack")
    models = folder / "models"
    models.mkdir()
    write_linear(models, 1e30)
    write_model(models, "queued", family="identity", delay_ms=100, max_batch_size=1, instances=1, queue_target_ms=0)
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:9"
    hook = '[{url = "http://127.0.0.1:9/", secret_env = "STACK_SECRET"}]'
    sconce = Server(models, SCONCE__WEBHOOKS=hook, STACK_SECRET="s" * 24)
    del os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"]
    write_model(models, "broken", family="tabular")
    try:
        stack = Stack(sconce, folder)
        with load(sconce.grpc, "linear", number("features", 1.0), pause=0.02), load(sconce.grpc, "queued", number("INPUT0", 1.0)):
            yield stack
        stack.stop()
        sconce.terminate()
        sconce.assert_clean_exit()
    finally:
        sconce.process.kill()
