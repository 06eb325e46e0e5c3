import shutil

import pytest

from server import Server, write_model
from stack import DEPLOY, Stack, load, number, write_linear


@pytest.fixture(scope="session")
def stack(tmp_path_factory):
    """Sconce, with a folder of models and a registry, Prometheus and Alertmanager, while somebody asks two models.

    `linear` answers more than a number can hold if it is asked for something large: an error of the server's. `queued` answers one
    request in 100 ms, and takes in as many as come, `short` almost none. `broken` cannot be loaded. Traces and events go to where nobody
    listens."""
    folder = tmp_path_factory.mktemp("stack")
    models = folder / "models"
    models.mkdir()
    write_linear(models, 1e30)
    write_model(models, "queued", family="identity", delay_ms=100, max_batch_size=1, instances=1, queue_target_ms=0)
    write_model(models, "short", family="identity", delay_ms=50, max_batch_size=1, instances=1, queue_depth=1)
    write_model(models, "cached", family="identity")
    with open(models / "cached" / "1" / "model.toml", "a") as file:
        file.write("[response_cache]\nmax_bytes = 4096\n")
    shutil.copytree(DEPLOY.parent / "crates" / "sconce-candle" / "tests" / "data" / "bert_classification", models / "text" / "1")
    sconce = Server(
        models,
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
        STACK_SECRET="s" * 24,
        SCONCE__ALLOW_PLAINTEXT="true",
        SCONCE__DATA=str(folder / "data"),
        SCONCE__MODEL_MEMORY_BYTES="{ cpu = 1_000_000_000 }",
        SCONCE__PERFORMANCE__COHORT_MS="1000",
        SCONCE__PERFORMANCE__MATURITY_MS="0",
        SCONCE__PERFORMANCE__MINIMUM_LABELS="10",
        SCONCE__TENANTS__HEADER="x-tenant-id",
        SCONCE__WEBHOOKS='[{url = "http://127.0.0.1:9/", secret_env = "STACK_SECRET"}]',
    )
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
