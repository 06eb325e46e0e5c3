import grpc
import pytest
import tritonclient.grpc
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub


@pytest.fixture(scope="session")
def client(server):
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        yield client


@pytest.fixture(scope="session")
def admin(server):
    """tritonclient, pointed at the control listener."""
    with tritonclient.grpc.InferenceServerClient(server.admin) as client:
        yield client


@pytest.fixture(scope="session")
def channel(server):
    with grpc.insecure_channel(server.grpc) as channel:
        yield channel


@pytest.fixture(scope="session")
def stub(channel):
    """The bare protocol: lets a test send what tritonclient would not."""
    return GRPCInferenceServiceStub(channel)
