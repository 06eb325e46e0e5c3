"""A Sconce process with the models that the tests use; run as a program, writes those models into a new folder.

Environment; tests/setup writes all but the last line to <target>/clients.env:
  SCONCE_BIN     the server
  SCONCE_DEMO    folder of the demo model breast_cancer and its held-out rows
  SCONCE_MINILM  folder of all-MiniLM-L6-v2
  SCONCE_K6, SCONCE_GRPCURL, SCONCE_PERF_ANALYZER  the tools
  SCONCE_TRACE_RECEIVER  a collector of traces with Jaeger's user interface and query API
  SCONCE_PLAYWRIGHT, SCONCE_CHROMIUM  a browser and what drives it: only with SCONCE_FULL
  SCONCE_GRPC, SCONCE_ADMIN, SCONCE_HTTP  addresses of a running server that holds the models of `build_models`:
                 with all three set none is started
"""

import collections
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

DATATYPES = "BOOL UINT8 UINT16 UINT32 UINT64 INT8 INT16 INT32 INT64 FP16 FP32 FP64 BF16 BYTES".split()
START_SECONDS = 60
STOP_SECONDS = 30


def setting(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        pytest.exit(f"{name} is not set: run tests/setup and source the clients.env that it writes", returncode=4)
    return value


def write_model(folder: Path, name: str, **keys) -> None:
    (folder / name / "1").mkdir(parents=True)
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
    (folder / name / "1" / "model.toml").write_text(text)


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def build_models(folder: Path) -> Path:
    for datatype in DATATYPES:
        write_model(folder, f"identity_{datatype.lower()}", family="identity", datatype=datatype)
    write_model(folder, "slow", family="identity", delay_ms=200, max_batch_size=1)
    shutil.copytree(Path(setting("SCONCE_DEMO")) / "breast_cancer", folder / "breast_cancer")
    # The server refuses links that lead out of its folder: real files, then.
    for name, keys in {"minilm": {}, "minilm_bf16": {"dtype": "bf16"}, "minilm_int8": {"dtype": "int8"}}.items():
        write_model(folder, name, **keys)
        shutil.copytree(setting("SCONCE_MINILM"), folder / name / "1", copy_function=link_or_copy, dirs_exist_ok=True)
    return folder


class Server:
    """A Sconce process of our own on free ports. `grpc`, `admin` and `http` are "host:port"."""

    def __init__(self, models: Path, **environment: str):
        listeners = [word for name in ("grpc", "admin", "http") for word in (f"--{name}", "127.0.0.1:0")]
        self.process = subprocess.Popen(
            [setting("SCONCE_BIN"), "serve", "--models", str(models), "--builtin", "identity,add_sub", *listeners],
            env=os.environ | environment,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self.log = collections.deque(maxlen=50)
        ready: queue.Queue = queue.Queue()
        threading.Thread(target=self._read_log, args=(ready,), daemon=True).start()
        try:
            line = ready.get(timeout=START_SECONDS)
            self.grpc, self.admin, self.http = line["grpc"], line["admin"], line["http"]
        except (queue.Empty, LookupError) as error:
            self.process.kill()
            self.process.wait()
            reason = f"not ready within {START_SECONDS} s" if isinstance(error, queue.Empty) else "no addresses"
            raise AssertionError(f"the server did not start: {reason}; its log ends in\n{''.join(self.log)}") from None

    def _read_log(self, ready: queue.Queue) -> None:
        for text in self.process.stderr:
            self.log.append(text)
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and line.get("message") == "ready":
                ready.put(line)
        ready.put({})

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def assert_clean_exit(self) -> None:
        try:
            code = self.process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"still running {STOP_SECONDS} s after SIGTERM:\n{''.join(self.log)}") from None
        assert code == 0, f"exit code {code} after SIGTERM:\n{''.join(self.log)}"


class Registry(Server):
    """A server of a data folder, and the command line that talks to it."""

    def __init__(self, data: Path, **environment: str):
        listeners = [word for name in ("grpc", "admin", "http") for word in (f"--{name}", "127.0.0.1:0")]
        self.process = subprocess.Popen(
            [setting("SCONCE_BIN"), "serve", "--data", str(data), *listeners],
            env=os.environ | environment,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self.data, self.log, ready = data, collections.deque(maxlen=50), queue.Queue()
        # An empty registry serves, and says so, without being ready.
        threading.Thread(target=self._read_log, args=(ready,), daemon=True).start()
        line = ready.get(timeout=START_SECONDS)
        assert "admin" in line, "".join(self.log)
        self.grpc, self.admin, self.http = line["grpc"], line["admin"], line["http"]

    def _read_log(self, ready):
        for text in self.process.stderr:
            self.log.append(text)
            line = json.loads(text) if text.startswith("{") else {}
            if "admin" in line:
                ready.put(line)
        ready.put({})

    def run(self, *words, code=0, **options):
        return sconce(*words, "--admin", self.admin, "--actor", "tester", code=code, **options)

    def json(self, *words, **options):
        return json.loads(self.run(*words, "--json", **options))


def sconce(*words, code=0, **options):
    """What a command says: on standard output if it succeeds or speaks to machines, else on standard error."""
    options.setdefault("stdin", subprocess.DEVNULL)
    command = [setting("SCONCE_BIN"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, **options)
    assert done.returncode == code, f"{words}: exit code {done.returncode}:\n{done.stdout}{done.stderr}"
    if code == 0 or ("--json" in words and done.stdout):
        return done.stdout
    return done.stderr or done.stdout


if __name__ == "__main__":
    print(build_models(Path(sys.argv[1])))
