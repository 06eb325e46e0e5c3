"""Good requests, in every form that clients send them."""

import math
import queue
import struct
import uuid

import ml_dtypes
import numpy
import pytest
import tritonclient.grpc

from wire import PATIENCE, add_sub_inputs, assert_still_serves, bytes_elements, good_add_sub, request, row, tensor

BOOLS = [True, False, True, True, False, False]
TEXTS = [b"", b"candle", b"\x00\x01\xff", "größe 🕯".encode(), b"a" * 1000, b"z"]


def limits(kind):
    info = numpy.iinfo(kind)
    return numpy.array([info.min, info.max, 0, 1, 2, 100], kind)


def floats(kind):
    return numpy.array([0, -0.0, 1.5, -2.25, math.inf, -math.inf]).astype(kind)


# Six values of every datatype, the ends of its range among them.
VALUES = {
    "BOOL": numpy.array(BOOLS),
    **{f"{sign}INT{bits}": limits(f"{sign}int{bits}".lower()) for sign in ("", "U") for bits in (8, 16, 32, 64)},
    "FP16": floats(numpy.float16),
    "FP32": floats(numpy.float32),
    "FP64": floats(numpy.float64),
    "BF16": floats(ml_dtypes.bfloat16),
    "BYTES": numpy.array(TEXTS, object),
}


@pytest.mark.parametrize("datatype", VALUES)
def test_raw_of_every_datatype(client, datatype):
    sent = VALUES[datatype].reshape(2, 3)
    result = client.infer(f"identity_{datatype.lower()}", [tensor("INPUT0", sent)], client_timeout=PATIENCE)
    output = result.get_output("OUTPUT0")
    assert output.datatype == datatype and list(output.shape) == [2, 3]
    got = result.as_numpy("OUTPUT0")
    if datatype == "BYTES":
        assert got.tolist() == sent.tolist()
    else:
        assert got.dtype == sent.dtype and got.tobytes() == sent.tobytes()


def test_not_a_number_passes_through_where_a_model_allows_it(client):
    sent = numpy.frombuffer(struct.pack("<2I", 0x7FC00001, 0xFF800000), numpy.float32).reshape(1, 2)
    got = client.infer("identity_fp32", [tensor("INPUT0", sent)], client_timeout=PATIENCE).as_numpy("OUTPUT0")
    assert got.tobytes() == sent.tobytes()


TYPED_FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


@pytest.mark.parametrize("datatype", TYPED_FIELDS)
def test_typed_request_gets_a_typed_reply(stub, datatype):
    field, values = TYPED_FIELDS[datatype], VALUES[datatype].tolist()
    message = request(f"identity_{datatype.lower()}", ("INPUT0", datatype, [2, 3], {field: values}))
    answer = stub.ModelInfer(message, timeout=PATIENCE)
    assert not answer.raw_output_contents
    (output,) = answer.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("OUTPUT0", datatype, [2, 3])
    assert list(getattr(output.contents, field)) == values
    assert [name.name for name, _ in output.contents.ListFields()] == [field]


def test_answer_says_what_answered(stub):
    answer = stub.ModelInfer(good_add_sub(), timeout=PATIENCE)
    assert (answer.model_name, answer.model_version, answer.id) == ("add_sub", "1", "")
    message = good_add_sub()
    message.id = "request-7"
    answer = stub.ModelInfer(message, timeout=PATIENCE)
    assert answer.id == "request-7"
    first = uuid.UUID(answer.parameters["prediction_id"].string_param)
    second = uuid.UUID(stub.ModelInfer(message, timeout=PATIENCE).parameters["prediction_id"].string_param)
    assert first.version == second.version == 7 and first != second


def test_only_the_requested_outputs_come_in_the_requested_order(client, stub):
    wanted = [tritonclient.grpc.InferRequestedOutput("OUTPUT1")]
    result = client.infer("add_sub", add_sub_inputs(), outputs=wanted, client_timeout=PATIENCE)
    assert result.as_numpy("OUTPUT0") is None
    assert (result.as_numpy("OUTPUT1") == row(1) - row(100)).all()
    answer = stub.ModelInfer(good_add_sub(outputs=["OUTPUT1", "OUTPUT0"]), timeout=PATIENCE)
    assert [one.name for one in answer.outputs] == ["OUTPUT1", "OUTPUT0"]
    assert answer.raw_output_contents[1] == (row(1) + row(100)).tobytes()


def test_inputs_may_come_in_any_order(client):
    result = client.infer("add_sub", add_sub_inputs()[::-1], client_timeout=PATIENCE)
    assert (result.as_numpy("OUTPUT1") == row(1) - row(100)).all()


def test_largest_batch(client):
    left = numpy.arange(64 * 16, dtype=numpy.float32).reshape(64, 16)
    result = client.infer("add_sub", [tensor("INPUT0", left), tensor("INPUT1", left * 2)], client_timeout=PATIENCE)
    assert (result.as_numpy("OUTPUT0") == left * 3).all() and (result.as_numpy("OUTPUT1") == -left).all()


def test_message_larger_than_four_mebibytes(client):
    sent = numpy.random.default_rng(1).random((8, 1 << 18), numpy.float32)
    got = client.infer("identity", [tensor("INPUT0", sent)], client_timeout=PATIENCE).as_numpy("OUTPUT0")
    assert sent.nbytes == 8 << 20 and (got == sent).all()


def test_async_infer_gives_everyone_their_own_answer(client):
    answers = queue.Queue()
    for number in range(200):
        client.async_infer(
            "add_sub",
            [tensor("INPUT0", row(number)), tensor("INPUT1", row(0))],
            lambda result, error, number=number: answers.put((number, result, error)),
            request_id=str(number),
            client_timeout=PATIENCE,
        )
    for _ in range(200):
        number, result, error = answers.get(timeout=PATIENCE)
        assert error is None, f"request {number}: {error}"
        assert result.get_response().id == str(number)
        assert (result.as_numpy("OUTPUT0") == row(number) + row(0)).all()
        assert (result.as_numpy("OUTPUT1") == row(number) - row(0)).all()


def test_stream_answers_in_order_and_survives_a_bad_message(client):
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)), stream_timeout=PATIENCE)
    try:
        for number in range(100):
            model = "no_such_model" if number % 10 == 3 else "add_sub"
            inputs = [tensor("INPUT0", row(number)), tensor("INPUT1", row(0))]
            client.async_stream_infer(model, inputs, request_id=str(number))
        for number in range(100):
            result, error = answers.get(timeout=PATIENCE)
            if number % 10 == 3:
                assert result is None and "no_such_model" in error.message()
            else:
                assert error is None and result.get_response().id == str(number)
                assert (result.as_numpy("OUTPUT0") == row(number) + row(0)).all()
    finally:
        client.stop_stream()
    assert answers.empty()


def test_stream_reply_carries_id_and_final_flag(stub):
    requests = [good_add_sub(), good_add_sub(version="9"), good_add_sub()]
    for number, message in enumerate(requests):
        message.id = f"id-{number}"
    answers = list(stub.ModelStreamInfer(iter(requests), timeout=PATIENCE))
    assert [bool(one.error_message) for one in answers] == [False, True, False]
    assert [one.infer_response.id for one in answers] == ["id-0", "id-1", "id-2"]
    for one in answers:
        assert one.infer_response.parameters["triton_final_response"].bool_param is True


def test_stream_of_slow_and_fast_models_keeps_the_order(stub):
    slow = request("slow", ("INPUT0", "FP32", [1, 2]), raw=[bytes(8)])
    requests = [slow, good_add_sub(), slow, good_add_sub()]
    names = [one.infer_response.model_name for one in stub.ModelStreamInfer(iter(requests), timeout=PATIENCE)]
    assert names == ["slow", "add_sub", "slow", "add_sub"]


@pytest.mark.parametrize("priority", [1, 2])
def test_priority_and_a_timeout_that_suffices(client, priority):
    # tritonclient sends the priority as uint64 and the timeout, in microseconds, as int64.
    result = client.infer("add_sub", add_sub_inputs(), priority=priority, timeout=20_000_000, client_timeout=PATIENCE)
    assert (result.as_numpy("OUTPUT0") == row(1) + row(100)).all()


def test_priority_as_int64(stub):
    stub.ModelInfer(good_add_sub(priority=1), timeout=PATIENCE)
    assert_still_serves(stub)
