"""Bad requests: each is refused with the right code, and a good one still succeeds after it."""

import struct

import grpc
import pytest
from grpc import StatusCode

from wire import PATIENCE, assert_still_serves, bytes_elements, fp32, good_add_sub, refused, request

ROW = bytes(64)
HUGE = 1 << 62


def add_sub(shape0=(1, 16), shape1=(1, 16), raw=(ROW, ROW), **more):
    return request("add_sub", ("INPUT0", "FP32", shape0), ("INPUT1", "FP32", shape1), raw=raw, **more)


def identity(shape, raw, datatype="FP32"):
    return request("identity", ("INPUT0", datatype, shape), raw=[raw])


def one_typed(datatype, shape, field, values):
    return request(f"identity_{datatype.lower()}", ("INPUT0", datatype, shape, {field: values}))


def texts(shape, raw):
    return request("identity_bytes", ("INPUT0", "BYTES", shape), raw=[raw])


def mixed():
    message = request("add_sub", ("INPUT0", "FP32", [1, 16], {"fp32_contents": [0.0] * 16}), ("INPUT1", "FP32", [1, 16]))
    message.raw_input_contents.append(ROW)
    return message


def both():
    message = one_typed("FP32", [1, 1], "fp32_contents", [1.0])
    message.raw_input_contents.append(fp32(1))
    return message


def two_fields():
    message = one_typed("FP32", [1, 1], "fp32_contents", [1.0])
    message.inputs[0].contents.int_contents.append(1)
    return message


def classification(value):
    message = good_add_sub(outputs=["OUTPUT0"])
    kind = "string_param" if isinstance(value, str) else "int64_param"
    setattr(message.outputs[0].parameters["classification"], kind, value)
    return message


NOT_FOUND = {
    "unknown model": request("no_such_model", ("INPUT0", "FP32", [1, 1]), raw=[fp32(1)]),
    "unknown version": good_add_sub(version="7"),
}

INVALID = {
    "version that is no alias": good_add_sub(version="no-such-alias"),
    "empty model name": request("", ("INPUT0", "FP32", [1, 1]), raw=[fp32(1)]),
    "model name of 10,000 bytes": request("m" * 10_000, ("INPUT0", "FP32", [1, 1]), raw=[fp32(1)]),
    "input name of 10,000 bytes": request("identity", ("i" * 10_000, "FP32", [1, 1]), raw=[fp32(1)]),
    "wrong input name": request("identity", ("INPUT9", "FP32", [1, 1]), raw=[fp32(1)]),
    "no input": request("identity"),
    "missing input": request("add_sub", ("INPUT0", "FP32", [1, 16]), raw=[ROW]),
    "one input too many": request("identity", ("INPUT0", "FP32", [1, 1]), ("INPUT1", "FP32", [1, 1]), raw=[fp32(1)] * 2),
    "same input twice": request("add_sub", ("INPUT0", "FP32", [1, 16]), ("INPUT0", "FP32", [1, 16]), raw=[ROW, ROW]),
    "unknown output": good_add_sub(outputs=["OUTPUT9"]),
    # Datatypes
    "wrong datatype": identity([1, 1], bytes(8), "FP64"),
    "wrong datatype of the same size": identity([1, 1], bytes(4), "INT32"),
    "unknown datatype": identity([1, 1], bytes(4), "FP12"),
    "empty datatype": identity([1, 1], bytes(4), ""),
    # Shapes
    "rank too low": add_sub([16]),
    "rank too high": add_sub([1, 1, 16]),
    "no shape": add_sub([]),
    "wrong dimension": add_sub([1, 15], raw=[bytes(60), ROW]),
    "rows differ between inputs": add_sub([2, 16], raw=[ROW + ROW, ROW]),
    "more rows than a batch holds": add_sub([65, 16], [65, 16], raw=[ROW * 65, ROW * 65]),
    "no rows": add_sub([0, 16], [0, 16], raw=[b"", b""]),
    "negative rows": add_sub([-1, 16]),
    "negative dimension": add_sub([1, -16]),
    "two negative dimensions": add_sub([-1, -16]),
    "element count past 64 bits": identity([HUGE, HUGE], b""),
    "element count past 64 bits, some data": identity([HUGE, HUGE], bytes(4)),
    "byte count past 64 bits": identity([1, HUGE], b""),
    "largest dimensions": identity([(1 << 63) - 1, (1 << 63) - 1], bytes(4)),
    "terabytes announced": identity([1, 1 << 40], bytes(4)),
    # Sizes
    "raw too short": add_sub(raw=[ROW[:-1], ROW]),
    "raw too long": add_sub(raw=[ROW + b"\0", ROW]),
    "raw empty": add_sub(raw=[b"", ROW]),
    "fewer raw buffers than inputs": add_sub(raw=[ROW]),
    "more raw buffers than inputs": add_sub(raw=[ROW, ROW, ROW]),
    "no data at all": add_sub(raw=[]),
    "raw and typed mixed": mixed(),
    "raw and typed for one input": both(),
    # Typed contents
    "typed too few": one_typed("FP32", [1, 2], "fp32_contents", [1.0]),
    "typed too many": one_typed("FP32", [1, 2], "fp32_contents", [1.0] * 3),
    "typed in the wrong field": one_typed("FP32", [1, 1], "int_contents", [1]),
    "typed in two fields": two_fields(),
    "typed FP16": one_typed("FP16", [1, 1], "fp32_contents", [1.0]),
    "typed BF16": one_typed("BF16", [1, 1], "fp32_contents", [1.0]),
    "typed INT8 out of range": one_typed("INT8", [1, 1], "int_contents", [128]),
    "typed INT16 out of range": one_typed("INT16", [1, 1], "int_contents", [-32769]),
    "typed UINT8 out of range": one_typed("UINT8", [1, 1], "uint_contents", [256]),
    "typed UINT16 out of range": one_typed("UINT16", [1, 1], "uint_contents", [65536]),
    # BYTES
    "BYTES length past the end": texts([1, 1], struct.pack("<I", 1000) + b"abc"),
    "BYTES length of 4 GiB": texts([1, 1], struct.pack("<I", 0xFFFFFFFF) + b"abc"),
    "BYTES length cut off": texts([1, 1], b"\x01\x00"),
    "BYTES element missing": texts([2, 1], bytes_elements(b"abc")),
    "BYTES element too many": texts([1, 1], bytes_elements(b"abc", b"def")),
    "BYTES bytes left over": texts([1, 1], bytes_elements(b"abc") + b"\0"),
    "BYTES elements past 64 bits": texts([HUGE, HUGE], b""),
    "a thousand million BYTES announced": texts([1, 10**9], bytes_elements(b"abc")),
    # Parameters
    "priority as text": good_add_sub(priority="high"),
    "negative priority": good_add_sub(priority=-1),
    "timeout as text": good_add_sub(timeout="soon"),
    "classification of none": classification(0),
    "classification of fewer": classification(-1),
    "classification as text": classification("two"),
    # Values
    "not a number where a model forbids it": request(
        "breast_cancer", ("features", "FP32", [2, 30]), raw=[fp32(*[1.0] * 59, float("nan"))]
    ),
}


@pytest.mark.parametrize("message", NOT_FOUND.values(), ids=NOT_FOUND.keys())
def test_not_found(stub, message):
    with refused(StatusCode.NOT_FOUND):
        stub.ModelInfer(message, timeout=PATIENCE)
    assert_still_serves(stub)


@pytest.mark.parametrize("message", INVALID.values(), ids=INVALID.keys())
def test_invalid(stub, message):
    with refused(StatusCode.INVALID_ARGUMENT):
        stub.ModelInfer(message, timeout=PATIENCE)
    assert_still_serves(stub)


def test_version_past_64_bits(stub):
    with refused(StatusCode.NOT_FOUND, StatusCode.INVALID_ARGUMENT):
        stub.ModelInfer(good_add_sub(version="9" * 30), timeout=PATIENCE)
    assert_still_serves(stub)


def test_every_bad_request_in_one_stream(stub):
    """A stream answers each of them in its place, and the good ones between them."""
    bad = [*NOT_FOUND.values(), *INVALID.values()]
    messages = [one for message in bad for one in (message, good_add_sub())]
    answers = list(stub.ModelStreamInfer(iter(messages), timeout=PATIENCE))
    assert [bool(one.error_message) for one in answers] == [True, False] * len(bad)


def test_message_says_what_was_expected_and_what_came(stub):
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(add_sub([1, 15], raw=[bytes(60), ROW]), timeout=PATIENCE)
    for part in ("INPUT0", "[-1, 16]", "[1, 15]"):
        assert part in caught.value.details()


def test_bytes_that_are_no_protobuf(channel, stub):
    call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    with refused(StatusCode.INTERNAL, StatusCode.INVALID_ARGUMENT):
        call(b"\xff" * 100, timeout=PATIENCE)
    assert_still_serves(stub)
