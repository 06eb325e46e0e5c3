"""Prometheus and Alertmanager, started as programs, and a Sconce that they watch, with somebody who asks it things."""

import contextlib
import json
import os
import queue
import re
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
import yaml

from server import setting, write_model

DEPLOY = Path(__file__).parents[3] / "deploy"
FULL = bool(os.environ.get("SCONCE_FULL"))
# By how much the rules' windows are shortened, and how often everything is looked at. The shortest window is five minutes.
FACTOR = 60 if FULL else 100
INTERVAL = "1s" if FULL else "500ms"
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def tool(name: str) -> str:
    return f"{setting('SCONCE_PROMETHEUS')}/{name}"


def output_of(*command, **options) -> str:
    done = subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, **options
    )
    assert done.returncode == 0, f"{command[0]}: exit code {done.returncode}:\n{done.stdout}"
    return done.stdout


def shorten(rules: str) -> str:
    """The same rules with every window, offset and `for` a FACTORth as long. What a rule is named stays."""

    def shorter(match: re.Match) -> str:
        milliseconds = int(match["count"]) * SECONDS[match["unit"]] * 1000 // FACTOR
        return f"{match['before']}{milliseconds}ms{match['after']}"

    pattern = r"(?P<before>\[|offset |for: )(?P<count>\d+)(?P<unit>[smhd])(?P<after>\]|\b)"
    shortened, count = re.subn(pattern, shorter, rules)
    assert count > 10, "no windows found in the rules"
    return shortened


class Program:
    """A program that says in its log on which address it listens."""

    def __init__(self, *command):
        self.process = subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True, errors="replace")
        self.log: list[str] = []
        found: queue.Queue = queue.Queue()
        threading.Thread(target=self._read_log, args=(found,), daemon=True).start()
        self.address = found.get(timeout=60)
        assert self.address, f"{command[0]} did not start:\n{''.join(self.log)}"

    def _read_log(self, found: queue.Queue) -> None:
        for line in self.process.stderr:
            self.log = [*self.log[-50:], line]
            if match := re.search(r'msg="Listening on" address=(\S+)', line):
                found.put(match[1])
        found.put(None)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)

    def get(self, path: str, **parameters):
        url = f"http://{self.address}{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)


class Stack:
    """All three. `grpc`, `admin` and `http` are Sconce's listeners."""

    def __init__(self, sconce, folder: Path):
        self.grpc, self.admin, self.http = sconce.grpc, sconce.admin, sconce.http
        self.alertmanager = Program(
            tool("prometheus-alertmanager"), f"--config.file={DEPLOY}/prometheus/alertmanager.yml",
            f"--storage.path={folder}/alertmanager", "--web.listen-address=127.0.0.1:0", "--cluster.listen-address=",
        )
        rules = folder / "rules"
        rules.mkdir()
        for path in (DEPLOY / "prometheus" / "rules").glob("*.yml"):
            (rules / path.name).write_text(shorten(path.read_text()))
        # Ours but for where everything is, and how often.
        config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": INTERVAL, "scrape_timeout": INTERVAL, "evaluation_interval": INTERVAL}
        config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [self.alertmanager.address]
        [job] = config["scrape_configs"]
        job["static_configs"][0]["targets"] = [sconce.http]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.prometheus = Program(
            tool("prometheus"), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/prometheus",
            "--web.listen-address=127.0.0.1:0", "--enable-feature=exemplar-storage",
        )
        wait_until("Prometheus has scraped", 60, self._unscraped)

    def _unscraped(self):
        try:
            return None if self.query("sconce:requests:rate5m") else "no rate"
        except urllib.error.HTTPError as error:
            return error

    def stop(self) -> None:
        self.prometheus.stop()
        self.alertmanager.stop()

    def query(self, expression: str) -> list:
        return self.prometheus.get("/api/v1/query", query=expression)["data"]["result"]

    def alerts(self) -> dict:
        """What Alertmanager shows now, by name, model and objective."""
        shown = self.alertmanager.get("/api/v2/alerts")
        key = lambda one: tuple(one["labels"][name] for name in ("alertname", "model", "slo") if name in one["labels"])
        return {key(one): one for one in shown}


def wait_until(what: str, seconds: float, ask) -> None:
    """Asks until nothing is amiss. `ask` gives what is."""
    end = time.monotonic() + seconds
    while amiss := ask():
        assert time.monotonic() < end, f"{what}: after {seconds} s there is still {amiss}"
        time.sleep(0.2)


def write_linear(folder: Path, weight: float) -> None:
    """A model of one number: the given weight times it."""
    write_model(folder, "linear", family="tabular")
    header = json.dumps({"0.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}}).encode()
    content = struct.pack("<Q", len(header)) + header + struct.pack("<f", weight)
    (folder / "linear" / "1" / "model.safetensors").write_bytes(content)


def number(name: str, value: float) -> list[triton.InferInput]:
    """Inputs of a model that takes one number."""
    one = triton.InferInput(name, [1, 1], "FP32")
    one.set_data_from_numpy(np.full((1, 1), value, np.float32))
    return [one]


@contextlib.contextmanager
def load(address: str, model: str, inputs: list, callers: int = 1, pause: float = 0.0):
    """Asks `model` over and over meanwhile, `callers` at once, each with a pause between its requests. Gives what was answered:
    "ok", or the status."""
    stop = threading.Event()
    answers: list[str] = []

    def call() -> None:
        client = triton.InferenceServerClient(address)
        while not stop.is_set():
            try:
                client.infer(model, inputs)
                answers.append("ok")
            except triton.InferenceServerException as error:
                answers.append(str(error.status()))
            stop.wait(pause)
        client.close()

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join()
