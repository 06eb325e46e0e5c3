"""Models made of other models, and answers that are kept."""

import numpy
import pytest
import tritonclient.grpc
from grpc import StatusCode
from tritonclient.utils import InferenceServerException

from wire import PATIENCE, tensor

ENSEMBLE = """
family = "ensemble"
max_batch_size = 8
[[inputs]]
name = "values"
datatype = "FP32"
shape = [-1, 16]
[[outputs]]
name = "twice"
datatype = "FP32"
shape = [-1, 16]
[[outputs]]
name = "nothing"
datatype = "FP32"
shape = [-1, 16]
[[steps]]
model = "add_sub"
inputs = { INPUT0 = "values", INPUT1 = "copy" }
outputs = { OUTPUT0 = "twice", OUTPUT1 = "nothing" }
[[steps]]
model = "echo"
inputs = { INPUT0 = "values" }
outputs = { OUTPUT0 = "copy" }
"""
ECHO = 'family = "identity"\n[response_cache]\nmax_bytes = 65536\n'


def write_models(folder):
    for name, text in {"double": ENSEMBLE, "echo": ECHO}.items():
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / "model.toml").write_text(text)


@pytest.fixture
def both(start_server):
    server = start_server(write_models)
    with (
        tritonclient.grpc.InferenceServerClient(server.grpc) as client,
        tritonclient.grpc.InferenceServerClient(server.admin) as admin,
    ):
        yield client, admin


def infer(client, rows):
    return client.infer("double", [tensor("values", rows)], client_timeout=PATIENCE)


def test_an_ensemble_answers_and_its_step_s_answers_are_kept(both):
    client, _ = both
    rows = numpy.arange(32, dtype=numpy.float32).reshape(2, 16)
    for _ in range(2):
        result = infer(client, rows)
        assert (result.as_numpy("twice") == 2 * rows).all()
        assert (result.as_numpy("nothing") == 0).all()
    metadata = client.get_model_metadata("double", as_json=True)
    assert metadata["platform"] == "ensemble"
    config = client.get_model_config("double", as_json=True)["config"]
    steps = config["ensemble_scheduling"]["step"]
    assert [step["model_name"] for step in steps] == ["echo", "add_sub"]
    assert steps[1]["input_map"] == {"INPUT0": "values", "INPUT1": "copy"}
    assert client.get_model_config("echo", as_json=True)["config"]["response_cache"] == {"enable": True}

    def counts(name):
        (model,) = client.get_inference_statistics(name).model_stats
        stats = model.inference_stats
        return stats.success.count, stats.cache_hit.count, stats.cache_miss.count, model.execution_count

    assert counts("double") == (2, 0, 0, 0)
    assert counts("echo") == (2, 1, 1, 1)
    assert counts("add_sub") == (2, 0, 0, 2)


def test_a_step_that_was_unloaded_is_named(both):
    client, admin = both
    admin.unload_model("echo")
    rows = numpy.zeros((1, 16), numpy.float32)
    with pytest.raises(InferenceServerException) as refused:
        infer(client, rows)
    assert refused.value.status() == str(StatusCode.UNAVAILABLE)
    assert refused.value.message().startswith("step `echo`: ")
    admin.load_model("echo")
    assert (infer(client, rows).as_numpy("twice") == 0).all()
