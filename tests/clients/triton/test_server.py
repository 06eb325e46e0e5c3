"""Everything that is asked of a server other than inference, and its control and HTTP listeners."""

from contextlib import contextmanager
from urllib.request import urlopen

import grpc
import numpy
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from wire import PATIENCE, add_sub_inputs, assert_still_serves, eventually, refused, tensor

SERVICE = "inference.GRPCInferenceService"


def test_live_and_ready(client):
    assert client.is_server_live(client_timeout=PATIENCE)
    assert client.is_server_ready(client_timeout=PATIENCE)
    assert client.is_model_ready("add_sub", client_timeout=PATIENCE)
    assert client.is_model_ready("breast_cancer", "1", client_timeout=PATIENCE)
    assert client.is_model_ready("breast_cancer", "2", client_timeout=PATIENCE)


def test_server_metadata(client):
    metadata = client.get_server_metadata(client_timeout=PATIENCE)
    assert metadata.name and metadata.version
    # perf_analyzer looks for `statistics`.
    assert {"statistics", "model_repository", "classification"} <= set(metadata.extensions)
    assert not {"system_shared_memory", "cuda_shared_memory"} & set(metadata.extensions), "announced but not served"


def test_model_metadata(client):
    metadata = client.get_model_metadata("add_sub", client_timeout=PATIENCE)
    assert metadata.name == "add_sub" and metadata.versions == ["1"] and metadata.platform
    assert [(one.name, one.datatype, list(one.shape)) for one in metadata.inputs] == [
        ("INPUT0", "FP32", [-1, 16]),
        ("INPUT1", "FP32", [-1, 16]),
    ]
    assert [(one.name, one.datatype, list(one.shape)) for one in metadata.outputs] == [
        ("OUTPUT0", "FP32", [-1, 16]),
        ("OUTPUT1", "FP32", [-1, 16]),
    ]
    assert client.get_model_metadata("breast_cancer", client_timeout=PATIENCE).versions == ["1", "2"]
    output = client.get_model_metadata("minilm", client_timeout=PATIENCE).outputs[0]
    assert (output.name, output.datatype, list(output.shape)) == ("embedding", "FP32", [-1, 384])


def test_model_config(client):
    config = client.get_model_config("add_sub", client_timeout=PATIENCE).config
    assert config.name == "add_sub" and config.max_batch_size == 64
    # Triton's convention: with a batch size, the configured shapes lack the batch dimension.
    assert [(one.name, one.data_type, list(one.dims)) for one in config.input] == [
        ("INPUT0", 11, [16]),
        ("INPUT1", 11, [16]),
    ]
    assert [one.name for one in config.output] == ["OUTPUT0", "OUTPUT1"]


@pytest.mark.parametrize("call", ["get_model_metadata", "get_model_config", "get_inference_statistics"])
@pytest.mark.parametrize("model, version", [("no_such_model", ""), ("add_sub", "7")])
def test_unknown_is_not_found(client, stub, call, model, version):
    with refused(StatusCode.NOT_FOUND):
        getattr(client, call)(model, version, client_timeout=PATIENCE)
    assert_still_serves(stub)


def test_statistics_count_requests_and_rows(client):
    def counted():
        (one,) = client.get_inference_statistics("identity_int32", "1", client_timeout=PATIENCE).model_stats
        assert (one.name, one.version) == ("identity_int32", "1")
        return one

    before = counted()
    for _ in range(5):
        client.infer("identity_int32", [tensor("INPUT0", numpy.ones((3, 2), numpy.int32))], client_timeout=PATIENCE)
    eventually(lambda: counted().inference_stats.success.count >= before.inference_stats.success.count + 5)
    after = counted()
    assert after.inference_stats.success.count == before.inference_stats.success.count + 5
    assert after.inference_stats.queue.count == before.inference_stats.queue.count + 5
    assert after.inference_count == before.inference_count + 15
    # One request at a time: nothing to batch together.
    assert after.execution_count == before.execution_count + 5
    assert after.inference_stats.success.ns > before.inference_stats.success.ns
    assert after.last_inference > before.last_inference
    assert after.inference_stats.fail.count == before.inference_stats.fail.count


def test_statistics_of_all_models(client):
    stats = client.get_inference_statistics(client_timeout=PATIENCE).model_stats
    assert {("add_sub", "1"), ("breast_cancer", "1"), ("breast_cancer", "2")} <= {(one.name, one.version) for one in stats}


def test_repository_index(client):
    index = client.get_model_repository_index(client_timeout=PATIENCE).models
    states = {(one.name, one.version): one.state for one in index}
    assert states[("add_sub", "1")] == "READY"
    assert states[("breast_cancer", "1")] == states[("breast_cancer", "2")] == "READY"
    assert states[("minilm", "1")] == "READY"


@contextmanager
def unloaded(admin, model):
    admin.unload_model(model, client_timeout=PATIENCE)
    try:
        yield
    finally:
        admin.load_model(model, client_timeout=PATIENCE)


def test_unload_and_load(client, admin, stub):
    def infer():
        return client.infer("identity_int8", [tensor("INPUT0", numpy.ones((1, 2), numpy.int8))], client_timeout=PATIENCE)

    infer()
    with unloaded(admin, "identity_int8"):
        with refused(StatusCode.UNAVAILABLE):
            infer()
        assert not client.is_model_ready("identity_int8", client_timeout=PATIENCE)
        index = client.get_model_repository_index(client_timeout=PATIENCE).models
        assert [one.state for one in index if one.name == "identity_int8"] == ["UNAVAILABLE"]
        ready = stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(ready=True), timeout=PATIENCE).models
        assert "identity_int8" not in {one.name for one in ready} and "add_sub" in {one.name for one in ready}
        assert_still_serves(stub)
    assert client.is_model_ready("identity_int8", client_timeout=PATIENCE)
    assert infer().as_numpy("OUTPUT0").tolist() == [[1, 1]]


def test_load_and_unload_as_kserve_says_it(server, client):
    """KServe's messages carry the model name in field 1, which is Triton's `repository_name`."""
    with grpc.insecure_channel(server.admin) as channel:
        stub = GRPCInferenceServiceStub(channel)
        stub.RepositoryModelUnload(service_pb2.RepositoryModelUnloadRequest(repository_name="identity_int16"), timeout=PATIENCE)
        try:
            assert not client.is_model_ready("identity_int16", client_timeout=PATIENCE)
        finally:
            stub.RepositoryModelLoad(service_pb2.RepositoryModelLoadRequest(repository_name="identity_int16"), timeout=PATIENCE)
    assert client.is_model_ready("identity_int16", client_timeout=PATIENCE)


def test_loading_an_unknown_model_is_not_found(admin, stub):
    with refused(StatusCode.NOT_FOUND):
        admin.load_model("no_such_model", client_timeout=PATIENCE)
    assert_still_serves(stub)


def test_load_with_files_and_a_configuration_in_the_call(client, admin, stub):
    def infer(rows):
        return client.infer("sent", [tensor("INPUT0", numpy.ones((rows, 2), numpy.float32))], client_timeout=PATIENCE)

    files = {"file:3/model.toml": b"family = 'identity'\n"}
    config = '{"max_batch_size": 2, "instance_group": [{"count": 1}]}'
    admin.load_model("sent", config=config, files=files, client_timeout=PATIENCE)
    answer = infer(2)
    assert answer.get_response().model_version == "3" and answer.as_numpy("OUTPUT0").tolist() == [[1, 1], [1, 1]]
    assert client.get_model_config("sent", client_timeout=PATIENCE).config.max_batch_size == 2
    with refused(StatusCode.INVALID_ARGUMENT):
        infer(3)
    # What cannot be loaded leaves what is served.
    for bad, config, code in [
        ({"file:../3/model.toml": b""}, None, StatusCode.INVALID_ARGUMENT),
        ({"file:model.toml": b""}, None, StatusCode.INVALID_ARGUMENT),
        (None, "not JSON", StatusCode.INVALID_ARGUMENT),
        (None, '{"optimization": {}}', StatusCode.INVALID_ARGUMENT),
        ({"file:3/model.toml": b"family = 'none'"}, "{}", StatusCode.FAILED_PRECONDITION),
    ]:
        with refused(code):
            admin.load_model("sent", config=config, files=bad, client_timeout=PATIENCE)
        infer(2)
    # It was never in the folder: unloaded and loaded again it is not there.
    admin.unload_model("sent", client_timeout=PATIENCE)
    with refused(StatusCode.NOT_FOUND):
        admin.load_model("sent", client_timeout=PATIENCE)
    assert_still_serves(stub)


def test_a_configuration_in_the_call_holds_until_the_next_load(client, admin):
    before = client.get_model_config("identity_int8", client_timeout=PATIENCE).config.max_batch_size
    try:
        admin.load_model("identity_int8", config='{"maxBatchSize": 3}', client_timeout=PATIENCE)
        assert client.get_model_config("identity_int8", client_timeout=PATIENCE).config.max_batch_size == 3
    finally:
        admin.load_model("identity_int8", client_timeout=PATIENCE)
    assert client.get_model_config("identity_int8", client_timeout=PATIENCE).config.max_batch_size == before


def test_control_listener_serves_inference_too(admin):
    assert admin.is_server_ready(client_timeout=PATIENCE)
    assert admin.infer("add_sub", add_sub_inputs(), client_timeout=PATIENCE).as_numpy("OUTPUT0")[0, 0] == 101


@pytest.mark.parametrize("call, arguments", [
    ("load_model", ["identity_int8"]),
    ("unload_model", ["identity_int8"]),
    ("update_log_settings", [{"log_info": True}]),
    ("get_log_settings", []),
])
def test_inference_listener_refuses_control(client, stub, call, arguments):
    with refused(StatusCode.PERMISSION_DENIED, mentions="control"):
        getattr(client, call)(*arguments, client_timeout=PATIENCE)
    assert_still_serves(stub)


def test_log_settings(admin):
    def settings():
        answer = admin.get_log_settings(as_json=True, client_timeout=PATIENCE)["settings"]
        return {name: next(iter(value.values())) for name, value in answer.items()}

    before = settings()
    assert before, "no log setting is published"
    # Every setting can be written back as it was read, and that changes nothing.
    admin.update_log_settings(before, client_timeout=PATIENCE)
    assert settings() == before


def test_shared_memory_is_refused_but_clearing_it_works(client, stub):
    assert not client.get_system_shared_memory_status(client_timeout=PATIENCE).regions
    assert not client.get_cuda_shared_memory_status(client_timeout=PATIENCE).regions
    client.unregister_system_shared_memory(client_timeout=PATIENCE)
    client.unregister_cuda_shared_memory(client_timeout=PATIENCE)
    with refused(StatusCode.UNIMPLEMENTED):
        client.register_system_shared_memory("region", "/region", 64, client_timeout=PATIENCE)
    with refused(StatusCode.UNIMPLEMENTED):
        client.register_cuda_shared_memory("region", b"", 0, 64, client_timeout=PATIENCE)
    inputs = add_sub_inputs()
    inputs[0].set_shared_memory("region", 64)
    with refused(StatusCode.UNIMPLEMENTED, StatusCode.INVALID_ARGUMENT):
        client.infer("add_sub", inputs, client_timeout=PATIENCE)
    assert_still_serves(stub)


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health(channel, service):
    health = health_pb2_grpc.HealthStub(channel)
    asked = health_pb2.HealthCheckRequest(service=service)
    assert health.Check(asked, timeout=PATIENCE).status == health_pb2.HealthCheckResponse.SERVING
    watch = health.Watch(asked, timeout=PATIENCE)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


def test_health_of_an_unknown_service_is_not_found(channel):
    with pytest.raises(grpc.RpcError) as caught:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="no.such"), timeout=PATIENCE)
    assert caught.value.code() == StatusCode.NOT_FOUND


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection(channel, version):
    call = channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")
    # ServerReflectionRequest { list_services: "" }; service names travel as plain text in the answer.
    (answer,) = call(iter([b"\x3a\x00"]), timeout=PATIENCE)
    assert SERVICE.encode() in answer and b"grpc.health.v1.Health" in answer


def test_unknown_method_is_unimplemented(channel, stub):
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{SERVICE}/NoSuchMethod")(b"", timeout=PATIENCE)
    assert caught.value.code() == StatusCode.UNIMPLEMENTED
    assert_still_serves(stub)


def get(server, path):
    with urlopen(f"http://{server.http}{path}", timeout=PATIENCE) as answer:
        return answer.status, answer.headers, answer.read().decode()


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_http_health(server, path):
    assert get(server, path)[0] == 200


def test_metrics_carry_tritons_names(server, stub):
    def samples():
        """Prometheus text, read strictly: {(name, labels): value}."""
        _, headers, text = get(server, "/metrics")
        assert "text/plain" in headers["Content-Type"] or "openmetrics-text" in headers["Content-Type"]
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}

    def of_add_sub(name, **labels):
        wanted = [f'{key}="{value}"' for key, value in {"model": "add_sub", "version": "1", **labels}.items()]
        return sum(
            value
            for sample, value in samples().items()
            if sample.split("{")[0] == name and all(one in sample for one in wanted)
        )

    names = "request_success count exec_count request_duration_us queue_duration_us compute_infer_duration_us".split()
    before = {name: of_add_sub(f"nv_inference_{name}") for name in names}
    for _ in range(4):
        assert_still_serves(stub)
    eventually(lambda: of_add_sub("nv_inference_request_success") >= before["request_success"] + 4)
    after = {name: of_add_sub(f"nv_inference_{name}") for name in names}
    assert [after[name] - before[name] for name in names[:3]] == [4, 4, 4]
    assert after["request_duration_us"] > before["request_duration_us"]
    assert set(names) <= {sample.split("{")[0].removeprefix("nv_inference_") for sample in samples()}
    assert any(sample.startswith("nv_inference_pending_request_count{") for sample in samples())
