"""Requests that Sconce recorded, replayed against a server that is none."""

import json

import pytest

from server import Registry, sconce
from test_shadow import FULL, MODEL, ROWS, candle, mlserver  # noqa: F401

ASKED = 24
LOGGED = "[prediction_log]\nsample = 1.0\n"


@pytest.fixture
def recorded(tmp_path):
    """A recording of the same model on Candle."""
    folder = candle(tmp_path / "1", *FULL[1:])
    own = (folder / "model.toml").read_text()
    (folder / "model.toml").write_text(f'data_policy = "all"\n{own}\n{LOGGED}')
    log = tmp_path / "log"
    server = Registry(tmp_path / "data", SCONCE__ALLOW_PLAINTEXT="true", SCONCE__PREDICTION_LOG__DIR=str(log))
    server.run("model", "push", MODEL, folder, "--promote", "champion")
    for row in ROWS[:ASKED]:
        sconce("infer", MODEL, "--input", f"features={json.dumps([row.tolist()])}", "--server", server.grpc)
    server.terminate()
    server.assert_clean_exit()
    return log


def test_what_candle_answered_mlserver_answers(recorded, mlserver):
    replay = ("replay", recorded, "--server", mlserver.address, "--output", "probabilities=predict_proba", "--rate", "max", "--json")
    told = json.loads(sconce(*replay))
    assert (told["verdict"], told["sent"], told["compared"], told["different"]) == ("equal", ASKED, ASKED, 0)
    (output,) = told["models"][0]["comparison"]["outputs"]
    assert (output["name"], output["rows"]["count"]) == ("probabilities", ASKED)
    told = json.loads(sconce(*replay, "--absolute", "0", "--relative", "0", code=1))
    assert told["verdict"] == "different" and told["different"] > 0
    # What it does not have is an answer that differs.
    told = json.loads(sconce("replay", recorded, "--server", mlserver.address, "--rate", "max", "--json", code=1))
    assert told["different"] == ASKED
