import os

import pytest

from server import Server, build_models


class Running:
    """A server that somebody else started."""

    def __init__(self, grpc: str, admin: str, http: str):
        self.grpc, self.admin, self.http = grpc, admin, http


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The server that all tests of a session share."""
    given = [os.environ.get(name) for name in ("SCONCE_GRPC", "SCONCE_ADMIN", "SCONCE_HTTP")]
    if all(given):
        yield Running(*given)
        return
    own = Server(build_models(tmp_path_factory.mktemp("server") / "models"))
    yield own
    own.terminate()
    own.assert_clean_exit()


@pytest.fixture
def start_server(tmp_path):
    """Starts one more server, with the models that the given function writes, and more of an environment."""
    started = []

    def start(write_models, **environment: str) -> Server:
        folder = tmp_path / "models"
        folder.mkdir()
        write_models(folder)
        started.append(Server(folder, **environment))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()
