"""Requests built by hand, and what a refusal must look like."""

import struct
from contextlib import contextmanager
from time import monotonic

import grpc
import numpy
import pytest
import tritonclient.grpc
from tritonclient.grpc.service_pb2 import ModelInferRequest
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

# The longest a single call may take in these tests, in seconds.
PATIENCE = 30


def tensor(name, array):
    """An input of tritonclient from a numpy array, datatype and shape taken from it."""
    value = tritonclient.grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    return value.set_data_from_numpy(array)


def row(start=0):
    return numpy.arange(start, start + 16, dtype=numpy.float32).reshape(1, 16)


def add_sub_inputs():
    return [tensor("INPUT0", row(1)), tensor("INPUT1", row(100))]


def request(model, *inputs, raw=(), version="", outputs=(), **parameters):
    """A bare message; an input is (name, datatype, shape) or (name, datatype, shape, {contents field: values})."""
    message = ModelInferRequest(model_name=model, model_version=version, raw_input_contents=raw)
    for name, datatype, shape, *contents in inputs:
        one = message.inputs.add(name=name, datatype=datatype, shape=shape)
        for field, values in contents[0].items() if contents else ():
            getattr(one.contents, field).extend(values)
    for name in outputs:
        message.outputs.add(name=name)
    for name, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[type(value)]
        setattr(message.parameters[name], kind, value)
    return message


def fp32(*values):
    return struct.pack(f"<{len(values)}f", *values)


def bytes_elements(*elements):
    """BYTES as it travels raw: a length before each element."""
    return b"".join(struct.pack("<I", len(one)) + one for one in elements)


def good_add_sub(**parameters):
    return request(
        "add_sub",
        ("INPUT0", "FP32", [1, 16]),
        ("INPUT1", "FP32", [1, 16]),
        raw=[row(1).tobytes(), row(100).tobytes()],
        **parameters,
    )


def assert_still_serves(stub):
    answer = stub.ModelInfer(good_add_sub(), timeout=PATIENCE)
    assert [one.name for one in answer.outputs] == ["OUTPUT0", "OUTPUT1"]
    assert answer.raw_output_contents[0] == (row(1) + row(100)).tobytes()
    assert answer.raw_output_contents[1] == (row(1) - row(100)).tobytes()


@contextmanager
def refused(*codes, mentions=""):
    """The block must fail with one of these gRPC codes and a message of sensible length that mentions this."""
    with pytest.raises((grpc.RpcError, InferenceServerException)) as caught:
        yield
    error = caught.value
    if isinstance(error, InferenceServerException):
        code, message = error.status(), error.message()
    else:
        code, message = str(error.code()), error.details()
    assert code in [str(one) for one in codes], f"{code}: {message}"
    # The message travels in a header; one past 8 KiB would break common clients.
    assert 0 < len(message.encode()) <= 2048, f"message of {len(message)} characters: {message[:200]}"
    assert mentions in message.lower(), f"no `{mentions}` in: {message}"


def eventually(holds, seconds=10):
    """For what the server does after it has answered, such as counting: asks until it holds."""
    until = monotonic() + seconds
    while not holds():
        assert monotonic() < until, f"still not so after {seconds} s"
