"""Deadlines, whoever keeps the time, and the end of a server's life."""

import asyncio
import collections
from time import monotonic

import grpc
import numpy
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import InferenceServerClient
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from server import write_model
from wire import PATIENCE, assert_still_serves, refused, request, tensor


def slow(**parameters):
    """A request that takes 200 ms, and one at a time."""
    return request("slow", ("INPUT0", "FP32", [1, 2]), raw=[bytes(8)], **parameters)


def test_client_timeout(client, stub):
    with refused(StatusCode.DEADLINE_EXCEEDED):
        client.infer("slow", [tensor("INPUT0", numpy.zeros((1, 2), numpy.float32))], client_timeout=0.05)
    assert_still_serves(stub)


def test_timeout_parameter(stub):
    """The parameter is in microseconds; the call itself has all the time it wants."""
    # The slow model is busy with the first, so the second waits 200 ms in its queue.
    first, second = stub.ModelInfer.future(slow(), timeout=PATIENCE), stub.ModelInfer.future(slow(timeout=20_000), timeout=PATIENCE)
    with refused(StatusCode.DEADLINE_EXCEEDED):
        second.result()
    assert first.result().model_name == "slow"
    stub.ModelInfer(slow(timeout=20_000_000), timeout=PATIENCE)


CALLS, AT_ONCE, MILLISECONDS = 1000, 50, 20


@pytest.mark.parametrize("kept_by", ["server", "client and server"])
def test_a_thousand_expired_calls(server, stub, kept_by):
    """Every one is answered DEADLINE_EXCEEDED, and none of them is executed.

    With the header alone the client keeps no time, so the code is what the server sent.
    """
    if kept_by == "server":
        options = {"metadata": [("grpc-timeout", f"{MILLISECONDS}m")]}
    else:
        options = {"timeout": MILLISECONDS / 1000}

    async def code_of(calls, gate):
        async with gate:
            try:
                await asyncio.wait_for(calls.ModelInfer(slow(), **options), PATIENCE)
                return StatusCode.OK
            except grpc.aio.AioRpcError as error:
                return error.code()

    async def all_codes():
        gate = asyncio.Semaphore(AT_ONCE)
        async with grpc.aio.insecure_channel(server.grpc) as channel:
            calls = GRPCInferenceServiceStub(channel)
            return collections.Counter(await asyncio.gather(*(code_of(calls, gate) for _ in range(CALLS))))

    assert asyncio.run(all_codes()) == {StatusCode.DEADLINE_EXCEEDED: CALLS}
    # Executed, they would keep the model busy for 200 s.
    started = monotonic()
    stub.ModelInfer(slow(), timeout=PATIENCE)
    assert monotonic() - started < 5
    assert_still_serves(stub)


def test_abandoned_calls_are_not_executed(server, stub):
    with grpc.insecure_channel(server.grpc) as channel:
        calls = [GRPCInferenceServiceStub(channel).ModelInfer.future(slow(), timeout=PATIENCE) for _ in range(100)]
        calls[0].result()
        for call in calls:
            call.cancel()
    started = monotonic()
    stub.ModelInfer(slow(), timeout=PATIENCE)
    # Executed, they would take 20 s.
    assert monotonic() - started < 5


def test_sigterm_drains(start_server):
    """What was admitted is answered, health turns to NOT_SERVING, and the process ends with 0."""
    server = start_server(lambda folder: write_model(folder, "slow", family="identity", delay_ms=200, max_batch_size=1))
    with grpc.insecure_channel(server.grpc) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        calls = [GRPCInferenceServiceStub(channel).ModelInfer.future(slow(), timeout=PATIENCE) for _ in range(5)]
        # One connection carries them in order: with the first answered, the others have long been admitted.
        calls[0].result()
        server.terminate()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert [call.result().model_name for call in calls] == ["slow"] * 5
        watch.cancel()
    server.assert_clean_exit()


def test_unloading_drops_no_request(start_server):
    server = start_server(lambda folder: write_model(folder, "slow", family="identity", delay_ms=200, max_batch_size=1))
    with grpc.insecure_channel(server.grpc) as channel, InferenceServerClient(server.admin) as admin:
        stub = GRPCInferenceServiceStub(channel)
        calls = [stub.ModelInfer.future(slow(), timeout=PATIENCE) for _ in range(5)]
        calls[0].result()
        admin.unload_model("slow", client_timeout=PATIENCE)
        with refused(StatusCode.UNAVAILABLE):
            stub.ModelInfer(slow(), timeout=PATIENCE)
        assert [call.result().model_name for call in calls] == ["slow"] * 5
    server.terminate()
    server.assert_clean_exit()
