"""KServe's asynchronous gRPC client."""

import asyncio

import grpc
import numpy
import pytest
from kserve import InferenceGRPCClient, InferInput, InferRequest

PATIENCE = 30


def ask(server, question):
    """Runs `question(client)` to its end."""

    async def run():
        async with InferenceGRPCClient(server.grpc, timeout=PATIENCE) as client:
            return await question(client)

    return asyncio.run(run())


def infer(server, model, *inputs):
    return ask(server, lambda client: client.infer(InferRequest(model_name=model, infer_inputs=list(inputs), request_id="7")))


def tensor(name, array, datatype="FP32"):
    value = InferInput(name, list(array.shape), datatype)
    value.set_data_from_numpy(array, binary_data=True)
    return value


def typed(name, array, datatype="FP32"):
    return InferInput(name, list(array.shape), datatype, data=array.flatten().tolist())


LEFT = numpy.arange(32, dtype=numpy.float32).reshape(2, 16)
RIGHT = LEFT[::-1] * 3

# Two held-out rows of the demo data on whose diagnosis both versions agree.
MALIGNANT = [
    17.08, 27.15, 111.2, 930.9, 0.09898, 0.111, 0.1007, 0.06431, 0.1793, 0.06281, 0.9291, 1.152, 6.051, 115.2, 0.00874,
    0.02219, 0.02721, 0.01458, 0.02045, 0.004417, 22.96, 34.49, 152.1, 1648, 0.16, 0.2444, 0.2639, 0.1555, 0.301, 0.0906,
]
BENIGN = [
    11.95, 14.96, 77.23, 426.7, 0.1158, 0.1206, 0.01171, 0.01787, 0.2459, 0.06581, 0.361, 1.05, 2.455, 26.65, 0.0058,
    0.02417, 0.007816, 0.01052, 0.02734, 0.003114, 12.81, 17.72, 83.09, 496.2, 0.1293, 0.1885, 0.03122, 0.04766, 0.3124,
    0.0759,
]


@pytest.mark.parametrize("form", [tensor, typed])
def test_add_sub(server, form):
    answer = infer(server, "add_sub", form("INPUT0", LEFT), form("INPUT1", RIGHT))
    assert answer.id == "7" and answer.model_name == "add_sub"
    outputs = {one.name: one.as_numpy() for one in answer.outputs}
    assert (outputs["OUTPUT0"] == LEFT + RIGHT).all() and (outputs["OUTPUT1"] == LEFT - RIGHT).all()


@pytest.mark.parametrize("form", [tensor, typed])
def test_breast_cancer(server, form):
    rows = numpy.array([MALIGNANT, BENIGN], numpy.float32)
    (output,) = infer(server, "breast_cancer", form("features", rows)).outputs
    assert output.name == "probabilities" and list(output.shape) == [2, 2]
    probabilities = output.as_numpy()
    assert numpy.abs(probabilities.sum(axis=1) - 1).max() < 1e-5
    assert probabilities.argmax(axis=1).tolist() == [0, 1]


def test_text(server):
    value = InferInput("text", [2, 1], "BYTES")
    value.set_data_from_numpy(numpy.array([[b"a candle"], [b"a lamp"]], object), binary_data=True)
    (output,) = infer(server, "minilm", value).outputs
    first, second = output.as_numpy()
    assert first.shape == (384,) and 0.3 < float(first @ second) < 0.99


def test_readiness(server):
    assert ask(server, lambda client: client.is_server_live()) is True
    assert ask(server, lambda client: client.is_server_ready()) is True
    assert ask(server, lambda client: client.is_model_ready("add_sub")) is True


@pytest.mark.parametrize("model, name, code", [
    ("no_such_model", "INPUT0", grpc.StatusCode.NOT_FOUND),
    ("add_sub", "INPUT9", grpc.StatusCode.INVALID_ARGUMENT),
])
def test_error_code(server, model, name, code):
    with pytest.raises(grpc.RpcError) as caught:
        infer(server, model, tensor(name, LEFT), tensor("INPUT1", RIGHT))
    assert caught.value.code() == code
