"""The registry from the command line, as its users run it: one server, one model, from its first version to its last."""

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from server import Registry, sconce, setting

MODEL = "breast_cancer"
PACKAGES = Path(setting("SCONCE_DEMO")) / MODEL
ROW = json.dumps([[0.0] * 30])


def ask(registry, version=""):
    words = [f"--version={version}", "--input", f"features={ROW}", "--server", registry.grpc]
    return json.loads(sconce("infer", MODEL, *words))["version"]


@pytest.fixture
def registry(tmp_path):
    server = Registry(tmp_path / "data")
    yield server
    if server.process.poll() is None:
        server.process.kill()
        server.process.wait()


@pytest.fixture
def two_versions(registry):
    registry.run("model", "push", MODEL, PACKAGES / "1", "--label", "1.0.0", "--promote", "champion")
    registry.run("model", "push", MODEL, PACKAGES / "2", "--tag", "kind=mlp", "--metric", "auc=0.9", "--parent", "1")
    return registry


def test_a_version_is_pushed_listed_shown_and_compared(two_versions):
    versions = two_versions.json("model", "list", MODEL)["versions"]
    assert [(v["version"], v["label"], v["aliases"]) for v in versions] == [(1, "1.0.0", ["champion"]), (2, "", [])]
    assert versions[0]["state"] == "ready" and versions[0]["created_by"] == "tester"
    sizes = {file["path"]: file["bytes"] for file in versions[1]["files"]}
    assert sizes == {path.name: path.stat().st_size for path in (PACKAGES / "2").iterdir()}
    assert versions[1]["lineage"]["parent"] == 1 and versions[1]["tags"] == {"kind": "mlp"}
    # What the package says of itself, and what was said beside it.
    assert versions[1]["metrics"] == {"accuracy": 0.9532, "roc_auc": 0.9946, "auc": 0.9}

    assert [m["name"] for m in two_versions.json("model", "list")["models"]] == [MODEL]
    assert two_versions.json("model", "list", "--name-contains", "other")["models"] == []
    assert two_versions.json("model", "show", MODEL, "1.0.0") == versions[0]
    assert two_versions.json("model", "show", MODEL)["aliases"]["champion"] == {"version": 1, "previous": []}
    differences = {d["what"]: d for d in two_versions.json("model", "diff", MODEL, "champion", "2")["differences"]}
    assert differences["metric accuracy"]["change"] == pytest.approx(-0.0059)
    assert "file model.safetensors" in differences and "input features" not in differences
    assert versions[1]["lineage"]["source"] == str(PACKAGES / "2")
    assert differences["made from"]["b"] == "version 1" and differences["aliases"]["a"] == "champion"
    # People get tables of the same.
    table = two_versions.run("model", "list", MODEL)
    assert "champion" in table and "1.0.0" in table and len(table.splitlines()) == 3
    assert "champion → 1" in two_versions.run("model", "list")
    assert "no model has that name" in two_versions.run("model", "list", "--name-contains", "other")

    again = two_versions.run("model", "push", MODEL, PACKAGES / "1", "--monitor", "drift=march")
    assert "(the same content as version 1)" in again
    described = two_versions.json("model", "describe", MODEL, "3", "--monitor", "outliers=april", "--tag", "a=b")
    assert described["monitors"] == {"drift": "march", "outliers": "april"}
    described = two_versions.json("model", "describe", MODEL, "2", "--unmetric", "auc", "--metric", "loss=0.1")
    assert described["metrics"] == {"accuracy": 0.9532, "roc_auc": 0.9946, "loss": 0.1}
    assert "no metric" in two_versions.run("model", "describe", MODEL, "2", "--unmetric", "auc", code=1)
    two_versions.run("model", "load", MODEL, "3")
    said = two_versions.run("audit", "list", MODEL)
    assert "update_version version 3: monitors outliers=april, tags a=b" in said
    assert "set_wanted version 3: kept loaded (was auto)" in said and "set_alias champion → 1 (new)" in said


def test_a_folder_of_models_is_pushed_by_the_client_and_by_the_server(registry):
    names = [(v["model"], v["version"]) for v in registry.json("model", "push", PACKAGES.parent)["versions"]]
    assert names == [(MODEL, 1), (MODEL, 2)]
    words = ("model", "push", "copy", PACKAGES / "1", "--on-server")
    copy = registry.json(*words)["versions"][0]
    assert copy["lineage"]["source"] == str(PACKAGES / "1")
    # Three versions, and the files of two: what is the same is stored once.
    assert registry.json("registry", "check")["files"] == 4


def test_a_deadline_bounds_the_whole_command(two_versions):
    assert ask(two_versions, "champion") == "1"
    words = ("infer", MODEL, "--input", f"features={ROW}", "--deadline-ms", "50")
    # Who takes the connection and says nothing is not waited for, whichever call of the command that is.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        said = sconce(*words, "--server", "127.0.0.1:%d" % silent.getsockname()[1], code=1)
    assert "deadline" in said
    words = ("infer", MODEL, "--input", f"features={ROW}", "--deadline-ms", "60000")
    assert json.loads(sconce(*words, "--server", two_versions.grpc))["version"] == "1"


def test_traffic_follows_the_alias(two_versions):
    assert ask(two_versions) == "1" and ask(two_versions, "champion") == "1"
    assert "champion → version 2 (was 1)" in two_versions.run("model", "promote", MODEL, "2")
    assert ask(two_versions) == "2"
    # Nothing points at it any more: it stays in memory because somebody says so.
    assert two_versions.json("model", "load", MODEL, "1")["wanted"] == "loaded"
    assert ask(two_versions, "1") == "1"
    assert "champion → version 1 (was 2)" in two_versions.run("model", "rollback", MODEL)
    assert ask(two_versions, "champion") == "1"
    assert two_versions.json("model", "unload", MODEL, "2")["wanted"] == "unloaded"
    assert two_versions.json("model", "auto", MODEL, "2")["wanted"] == "auto"
    assert "version 2" in two_versions.run("model", "promote", MODEL, "2", "--expected", "2", code=1)
    assert ask(two_versions) == "1"


def test_a_rollout_is_checked_started_steered_and_watched_to_its_end(two_versions, tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text('''
        candidate = "2"
        gates = [{ metric = "error_rate", max = 0.5 }]
        [strategy.canary]
        stages = [
            { percent = 50, min_seconds = 0, min_samples = 1, approval = true },
            { percent = 100, min_seconds = 0, min_samples = 1, approval = true },
        ]
    ''')
    words = ("rollout", "start", MODEL, "--plan", plan)
    would = two_versions.json("rollout", "check", MODEL, "--plan", plan)
    assert (would["revision"], would["state"], would["stages"]) == (None, "awaiting_approval", 2)
    assert "has no rollout" in two_versions.run("rollout", "status", MODEL, code=1)
    assert two_versions.json(*words, "--reason", "a test")["candidate"] == {"version": 2, "variant": "v2"}
    assert "a rollout of version 2 is under way" in two_versions.run("model", "promote", MODEL, "2", code=1)
    assert two_versions.json("rollout", "pause", MODEL)["paused_because"] == "operator"
    assert "expected one that is awaiting approval" in two_versions.run("rollout", "approve", MODEL, code=1)
    two_versions.run("rollout", "resume", MODEL)
    assert "stage 1 of 2: 50 % of requests" in two_versions.run("rollout", "approve", MODEL)
    while two_versions.json("rollout", "status", MODEL)["stage"] == 1:
        ask(two_versions)
    two_versions.run("rollout", "abort", MODEL, "--reason", "enough")
    # An event a line; the exit code says how it ended.
    watched = two_versions.run("rollout", "watch", MODEL, code=4).splitlines()
    assert "stage 1 begins: 50 % of requests" in watched[4] and watched[-1].endswith("aborted: enough (by tester)")
    two_versions.run(*words)
    two_versions.run("rollout", "approve", MODEL)
    while two_versions.json("rollout", "status", MODEL)["stage"] == 1:
        ask(two_versions)
    two_versions.run("rollout", "approve", MODEL)
    while two_versions.json("rollout", "status", MODEL)["state"] != "promoted":
        ask(two_versions)
    states = [json.loads(line)["state"] for line in two_versions.run("rollout", "watch", MODEL, "--json").splitlines()]
    assert states == ["promoted"] and ask(two_versions) == "2"

    plan.write_text('candidate = "1"\nstrategy = { canary = { stages = [] } }\ncolour = 1')
    assert "colour" in two_versions.run("rollout", "check", MODEL, "--plan", plan, code=1)


def test_a_gate_refuses_until_it_is_forced(two_versions, tmp_path):
    gates = tmp_path / "gates.json"
    gates.write_text(json.dumps({"min_metrics": {"accuracy": 0.955}}))
    two_versions.run("model", "gates", MODEL, "--set", gates)
    assert json.loads(two_versions.run("model", "gates", MODEL))["min_metrics"] == {"accuracy": 0.955}
    refusal = two_versions.run("model", "promote", MODEL, "2", code=1)
    assert "0.9532" in refusal and "0.955" in refusal
    # Machines are told where they read, and each gate by itself.
    failed = {"gate": "accuracy at least 0.955", "passed": False, "detail": "it has 0.9532"}
    refused = two_versions.json("model", "promote", MODEL, "2", code=1)["error"]
    assert refused["code"] == "FAILED_PRECONDITION" and refused["gates"] == [failed]
    pushed = two_versions.json("model", "push", MODEL, PACKAGES / "2", "--promote", "champion", code=1)
    assert pushed["error"]["gates"] == [failed] and pushed["promoted"] == []
    assert [(v["version"], v["same_content_as"]) for v in pushed["versions"]] == [(3, 2)]
    assert ask(two_versions) == "1"
    two_versions.run("model", "promote", MODEL, "2", "--force", code=2)
    promoted = two_versions.json("model", "promote", MODEL, "2", "--force", "--reason", "on purpose")
    assert promoted["version"] == 2 and [g["passed"] for g in promoted["gates"]].count(False) == 1
    assert "gates: accuracy at least 0.955" in two_versions.run("model", "show", MODEL)
    assert "champion → version 2 (as it was)" in two_versions.run(
        "model", "promote", MODEL, "2", "--force", "--reason", "again"
    )
    last = json.loads(two_versions.run("audit", "list", MODEL, "--json").splitlines()[-1])
    assert (last["forced"], last["reason"], last["actor"]) == (True, "on purpose", "tester")
    gates.write_text('{"min_metric": {}}')
    assert "min_metric" in two_versions.run("model", "gates", MODEL, "--set", gates, code=1)


def test_changes_are_watched_as_they_come(two_versions):
    command = [setting("SCONCE_BIN"), "model", "watch", MODEL, "--after", "0", "--json", "--admin", two_versions.admin]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        seen = [json.loads(watching.stdout.readline()) for _ in range(3)]
        assert [entry["seq"] for entry in seen] == [1, 2, 3]
        two_versions.run("model", "promote", MODEL, "2", "--reason", "watched")
        entry = json.loads(watching.stdout.readline())
        assert (entry["seq"], entry["alias"], entry["version"], entry["reason"]) == (4, "champion", 2, "watched")
        watching.kill()


def test_what_is_in_use_is_not_deleted(two_versions):
    assert "champion" in two_versions.run("model", "rm", MODEL, "1", "--yes", code=1)
    assert "--yes" in two_versions.run("model", "rm", MODEL, "2", code=2)
    assert len(two_versions.json("model", "list", MODEL)["versions"]) == 2
    two_versions.run("model", "promote", MODEL, "2")
    two_versions.run("model", "promote", MODEL, "1")
    assert "alias champion cannot go back to it any more" in two_versions.run("model", "rm", MODEL, "2", "--yes")
    assert [v["version"] for v in two_versions.json("model", "list", MODEL)["versions"]] == [1]
    would = two_versions.json("model", "gc", "--dry-run")
    assert would["files"] == 2 and two_versions.json("model", "gc") == {**would, "dry_run": False}
    assert two_versions.json("model", "gc")["files"] == 0


def test_a_registry_is_verified_backed_up_and_restored(two_versions, tmp_path):
    verified = two_versions.json("audit", "verify")
    assert verified["intact"] and verified["entries"] == 3
    assert two_versions.json("registry", "check")["problems"] == []
    backup, restored = tmp_path / "backup.tar", tmp_path / "restored"
    two_versions.run("registry", "backup", backup)
    assert "--force" in two_versions.run("registry", "backup", backup, code=1)
    assert not (tmp_path / "backup.tar.partial").exists()
    assert "leave out --data" in sconce("registry", "check", "--data", two_versions.data, code=1)

    served = two_versions.run("registry", "export")
    assert two_versions.run("registry", "export", "json") == served

    half = tmp_path / "half.tar"
    half.write_bytes(backup.read_bytes()[:-5000])
    assert "no complete backup" in sconce("registry", "restore", half, "--data", restored, code=1)
    half.write_bytes(b"\x1b[2J no tar" * 200)
    assert "\x1b" not in sconce("registry", "restore", half, "--data", restored, code=1)
    sconce("registry", "restore", backup, "--data", restored)
    sconce("registry", "restore", backup, "--data", restored, code=1)
    assert json.loads(sconce("audit", "verify", "--data", restored, "--json")) == verified
    assert sconce("registry", "export", "json", "--data", restored) == served
    export = json.loads(served)
    assert [len(m["versions"]) for m in export["models"]] == [2] and len(export["audit"]) == 3
    # One bit.
    blob = next(path for path in restored.glob("artifacts/blobs/*/*"))
    blob.chmod(0o644)
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    checked = json.loads(sconce("registry", "check", "--data", restored, "--json", code=1))
    assert len(checked["problems"]) == 1, checked
    assert checked["problems"][0].startswith(f"model `{MODEL}` version ") and "repairs it" in checked["problems"][0]
    assert f"model `{MODEL}` version " in sconce("registry", "backup", tmp_path / "no.tar", "--data", restored, code=1)
    # Who removes the second word on how far the trail goes is found out, as often as somebody looks.
    head = (restored / "HEAD").read_bytes()
    (restored / "HEAD").unlink()
    for _ in range(2):
        told = json.loads(sconce("audit", "verify", "--data", restored, "--json", code=1))
        assert (told["entries"], told["head"]) == (3, verified["head"]) and "HEAD: it is missing" in told["problems"][0]
    assert not (restored / "HEAD").exists()
    (restored / "HEAD").write_bytes(head)
    pages = restored / "catalogue" / "db"
    pages.write_bytes(bytes(byte ^ 0x55 for byte in pages.read_bytes()))
    damaged = sconce("audit", "verify", "--data", restored, code=1)
    assert "damaged" in damaged and "backup" in damaged and "backtrace" not in damaged, damaged
    assert "no registry" in sconce("registry", "check", "--data", tmp_path / "missing", code=1)
    assert not (tmp_path / "missing").exists()


def test_bad_requests_say_what_is_wrong(two_versions, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.toml").write_text('family = "tabular"\n')
    (tmp_path / "linked").mkdir()
    shutil.copy(PACKAGES / "1" / "model.toml", tmp_path / "linked")
    os.symlink("/etc/passwd", tmp_path / "linked" / "model.safetensors")
    for words, said in [
        (("show", "nothing"), "nothing"),
        (("show", MODEL, "nobody"), "nobody"),
        (("promote", MODEL, "7"), "7"),
        (("promote", MODEL, "2", "no good"), "alias"),
        (("rollback", MODEL), "champion"),
        (("push", "../x", PACKAGES / "1"), "../x"),
        (("push", MODEL, PACKAGES / "1", "--version", "1"), "1"),
        (("push", MODEL, PACKAGES / "1", "--label", "1.0.0"), "1.0.0"),
        (("push", MODEL, PACKAGES), "model.toml"),
        (("push", PACKAGES / "1"), "model's name"),
        (("push", MODEL, tmp_path / "broken"), "cannot be served"),
        (("push", MODEL, tmp_path / "linked"), "leads out"),
        (("push", MODEL, tmp_path / "gone"), "gone"),
        (("push", MODEL, "ftp://x/y"), "ftp"),
    ]:
        assert said in two_versions.run("model", *words, code=1), words
    two_versions.run("model", "push", MODEL, PACKAGES / "1", "--metric", "a=high", code=2)
    assert len(two_versions.json("model", "list", MODEL)["versions"]) == 2
    assert two_versions.json("model", "show", "nothing", code=1)["error"]["code"] == "NOT_FOUND"
    assert two_versions.json("model", "describe", MODEL, code=2)["error"]["code"] == "INVALID_ARGUMENT"
    assert two_versions.json("model", "describe", MODEL, "--untag", "x", code=1)["error"]["code"] == "NOT_FOUND"
    assert two_versions.json("registry", "backup", PACKAGES, code=1)["error"]["code"] == "ALREADY_EXISTS"
    tree = tmp_path / "tree"
    shutil.copytree(tmp_path / "broken", tree / "broken" / "1")
    assert f"{tree}/broken/1: it cannot be served" in two_versions.run("model", "push", tree, code=1)
    assert "--admin" in sconce("model", "list", "--admin", two_versions.grpc, code=1)
    two_versions.terminate()
    two_versions.assert_clean_exit()
    assert "sconce serve" in two_versions.run("model", "list", code=1)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell", "elvish"])
def test_a_shell_gets_completions(shell):
    script = sconce("completions", shell)
    assert all(word in script for word in ("rollback", "dry-run", "audit"))
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_health_is_told_and_its_exit_code_says_how_it_is(two_versions, tmp_path):
    assert ask(two_versions) == "1"
    text = two_versions.run("health")
    assert text.startswith("healthy: sconce ") and "breast_cancer  availability" in text and "100.000 %" in text
    # What callers get wrong is not the model's fault; what it does not answer in time is.
    package = tmp_path / "late"
    package.mkdir()
    (package / "model.toml").write_text('family = "identity"\ndelay_ms = 50\ndefault_timeout_ms = 1\n')
    two_versions.run("model", "push", "late", package, "--promote", "champion")
    for _ in range(10):
        sconce("infer", MODEL, "--input", "features=[[1.0]]", "--server", two_versions.grpc, code=1)
        sconce("infer", "late", "--input", "INPUT0=[[1.0]]", "--server", two_versions.grpc, code=1)
    assert two_versions.json("health", MODEL)["status"] == "healthy"
    report = two_versions.json("health", "late", code=4)
    assert report["status"] == "unhealthy"
    # Of its errors, and of its availability.
    alerts = [(a["severity"], a["name"], a["model"]) for a in report["alerts"]]
    assert alerts == [("critical", "SconceSloBurnFast", "late")] * 2
    errors = {o["name"]: o for o in report["models"][0]["objectives"]}["error_rate"]
    assert errors["status"] == "burning" and errors["windows"][0]["value"] == 1.0
    assert "! critical SconceSloBurnFast late: error_rate" in two_versions.run("health", code=4)
    two_versions.run("health", "no-such-model", code=1)
