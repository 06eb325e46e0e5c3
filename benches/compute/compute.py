"""Drives the contestants of benches/compute/run in turns, checks that they agree, prints tables and draws a plot.

compute.py MODELS MINILM PACKAGES PLOT, and the environment that `run` sets.

A contestant is a process that loads its model and answers each line of its standard input, `SECONDS LENGTH...` with a
LENGTH for each row of a batch: {"ms": its median time over SECONDS}, or with SECONDS 0 {"values": its outputs}. The
token at `column` of `row` is 1000 + (row * 7919 + column * 104729) % 28000; a feature, and a pixel of [colours, height, width],
is (token - 15000) / 15000.
"""

import contextlib
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, NoReturn

import numpy as np
import vision

REFERENCE = "onnxruntime-f32"
JUDGE = "torch-f32"
RUNTIMES = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "torch": "PyTorch",
    "candle": "Candle",
    "sconce": "Sconce",
}
PRECISIONS = {"avx512": "f32 AVX-512"}
COLOURS = {
    "onnxruntime": "#8a8d91",
    "openvino": "#4e79a7",
    "torch": "#e1812c",
    "candle": "#b8a03c",
    "sconce": "#2f9e62",
}

PEERS = os.environ["PEERS"].split()
VARIANTS = [f"sconce-{variant}" for variant in os.environ["VARIANTS"].split()]
ROUNDS = int(os.environ["ROUNDS"])
SECONDS = os.environ["SECONDS_A_TURN"]
CORES = os.environ["CORES"].split(",")
MODELS, MINILM, PACKAGES, PLOT = map(pathlib.Path, sys.argv[1:])
DISTURBED = 0.05
DIFFERENCE = 1e-3
"""The most that values computed in f32 may differ, relative to the largest of their row."""

LISTS = ("SHAPES", "SHAPES_OF_TWO", "MLP_ROWS", "IMAGES")
"""Environment variables that say what is run."""

Times = dict[str, dict[str, list[float]]]
"""Milliseconds of each round, by shape and contestant."""


class Shape(NamedTuple):
    """A batch: the length of each row, and the billions of operations it needs, multiplications and additions apart."""

    name: str
    lengths: list[int]
    gigaflops: float = 0

    @classmethod
    def of_tokens(cls, name: str, config: dict) -> "Shape":
        """`ROWSxLENGTH`, or `ROWSxSHORTEST-LONGEST` with lengths spread evenly."""
        try:
            rows, length = name.split("x")
            shortest, longest = map(int, length.split("-") if "-" in length else (length, length))
            lengths = [shortest + row * 7 % (longest - shortest + 1) for row in range(int(rows))]
        except (ValueError, ZeroDivisionError):
            fail(f"shape {name!r}: expected ROWSxTOKENS or ROWSxSHORTEST-LONGEST")
        limit = config["max_position_embeddings"]
        if not lengths or not 1 <= shortest <= longest <= limit:
            fail(f"shape {name!r}: expected at least one row, of 1 to {limit} tokens")
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        dense = 2 * (4 * hidden**2 + 2 * hidden * inner)
        attention = 4 * hidden
        layer = sum(length * (dense + attention * length) for length in lengths)
        return cls(name, lengths, config["num_hidden_layers"] * layer / 1e9)

    @property
    def padding(self) -> float:
        """Tokens of a padded batch for each that is needed."""
        return len(self.lengths) * max(self.lengths) / sum(self.lengths)


def fail(reason: str) -> NoReturn:
    sys.exit(f"compute: {reason}")


def note(text: str) -> None:
    print(f"compute: {text}", file=sys.stderr)


def title(contestant: str) -> str:
    runtime, precision = contestant.split("-")
    return f"{RUNTIMES[runtime]} {PRECISIONS.get(precision, precision)}"


def package(model: str, variant: str, threads: int) -> pathlib.Path:
    """A copy of the model with the settings of this variant."""
    folder = PACKAGES / f"{model}_{variant}_{threads}" / "1"
    if not folder.exists():
        # Links would lead out of the package, and be refused.
        shutil.copytree(MINILM if model == "minilm" else MODELS / model, folder)
        family = {"minilm": "bert", "mlp": "tabular"}.get(model, "vision")
        (folder / "model.toml").write_text(f'family = "{family}"\ndtype = "{variant}"\nthreads = {threads}\n')
    return folder


class Worker:
    """A contestant's process with one model, on cores of its own number of threads."""

    def __init__(self, contestant: str, model: str, threads: int) -> None:
        self.contestant = contestant
        runtime, precision = contestant.split("-")
        if runtime == "sconce":
            command = [os.environ["COMPUTE_BIN"], package(model, precision, threads)]
        elif runtime == "candle":
            folder = MINILM if model == "minilm" else MODELS / model
            command = [os.environ["CANDLE_BINS"] + f"/candle-{precision}", folder]
        else:
            program = pathlib.Path(__file__).with_name("worker.py")
            command = [sys.executable, program, runtime, precision, model, str(threads), MODELS, MINILM]
        self.process = subprocess.Popen(
            ["taskset", "-c", ",".join(CORES[:threads]), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"RAYON_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)},
        )

    def ask(self, seconds: str, lengths: Iterable[int]) -> dict:
        try:
            print(seconds, *lengths, file=self.process.stdin, flush=True)
            return json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            fail(f"{title(self.contestant)} failed, exit status {self.stop()}: see above")

    def waited(self) -> float:
        """Seconds for which its threads were ready but had no core."""
        waited = 0
        for task in pathlib.Path(f"/proc/{self.process.pid}/task").glob("*/schedstat"):
            # A thread may have ended meanwhile.
            with contextlib.suppress(OSError):
                waited += int(task.read_text().split()[1])
        return waited / 1e9

    def turn(self, shape: Shape) -> tuple[float, bool]:
        """Its milliseconds, and whether it had its cores to itself; the best of three attempts when it had not."""
        attempts = []
        for _ in range(3):
            # Threads of the one before may still spin for a moment.
            time.sleep(0.05)
            begin, before = time.perf_counter(), self.waited()
            ms = self.ask(SECONDS, shape.lengths)["ms"]
            attempts.append(((self.waited() - before) / (time.perf_counter() - begin), ms))
            if attempts[-1][0] < DISTURBED:
                break
        waited, ms = min(attempts)
        return ms, waited < DISTURBED

    def stop(self) -> int:
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        return self.process.wait()


def compare(contestant: str, shape: Shape, got: list[float], reference: str, want: list[float]) -> tuple[float, float]:
    """The worst cosine of a row, and the largest difference relative to its row's largest value; ends the comparison where they are
    too far off to be the same computation.
    """
    rows = np.reshape(got, (len(shape.lengths), -1)), np.reshape(want, (len(shape.lengths), -1))
    norms = [np.linalg.norm(values, axis=1) for values in rows]
    cosine = float(np.min((rows[0] * rows[1]).sum(axis=1) / (norms[0] * norms[1])))
    difference = float(np.max(np.abs(rows[0] - rows[1]).max(axis=1) / np.abs(rows[1]).max(axis=1)))
    precision = contestant.split("-")[1]
    # Not (a > b), so that NaN fails too.
    if precision in ("f32", "avx512") and not difference <= DIFFERENCE:
        fail(f"{title(contestant)} differs from {title(reference)} at {shape.name} by {difference:.1e} of the largest value")
    if not cosine >= (0.97 if precision == "int8" else 0.999):
        fail(f"{title(contestant)} disagrees with {title(reference)} at {shape.name}: cosine {cosine:.5f}")
    return cosine, difference


def contest(what: str, contestants: list[str], model: str, threads: int, shapes: list[Shape]) -> Times:
    """Runs the contestants in turns, after a look at whether they agree."""
    note(f"{what}: {', '.join(map(title, contestants))}")
    workers = [Worker(contestant, model, threads) for contestant in contestants]
    disturbed = 0
    times: Times = {shape.name: {contestant: [] for contestant in contestants} for shape in shapes}
    try:
        # The plainest of them, if it takes part: PyTorch runs the layers one by one as they are written.
        judge = JUDGE if JUDGE in contestants else contestants[0]
        worst = {contestant: (1.0, 0.0) for contestant in contestants if contestant != judge}
        for shape in shapes:
            values = {worker.contestant: worker.ask("0", shape.lengths)["values"] for worker in workers}
            for contestant, (cosine, difference) in worst.items():
                found = compare(contestant, shape, values[contestant], judge, values[judge])
                worst[contestant] = min(cosine, found[0]), max(difference, found[1])
        agreement = (f"{title(name)} {cosine:.5f} ({difference:.0e})" for name, (cosine, difference) in worst.items())
        against = f"Worst cosine of a row to {title(judge)}, and largest difference relative to a row's largest value"
        print(f"\n{what}. {against}: {', '.join(agreement) or 'nothing to compare'}.")
        for turn in range(ROUNDS):
            note(f"{what}: round {turn + 1} of {ROUNDS}")
            for shape in shapes:
                for worker in workers:
                    ms, alone = worker.turn(shape)
                    times[shape.name][worker.contestant].append(ms)
                    disturbed += not alone
    finally:
        for worker in workers:
            worker.stop()
    if disturbed:
        turns = ROUNDS * len(shapes) * len(contestants)
        print(f"\n{disturbed} of {turns} turns waited for a core over {DISTURBED:.0%} of their time: others used it.")
    return times


def show(first: str, shapes: list[Shape], contestants: list[str], cell: Callable[[Shape, str], str]) -> None:
    heads = [first, *map(title, contestants)]
    rows = ([shape.name, *(cell(shape, contestant) for contestant in contestants)] for shape in shapes)
    lines = [heads, ["---"] + ["--:"] * len(contestants), *rows]
    print("\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))


def ratio(times: Times, shape: Shape, contestant: str, against: str) -> float:
    """How many times as fast `contestant` is as `against`: the median over rounds."""
    pairs = zip(times[shape.name][contestant], times[shape.name][against])
    return statistics.median(theirs / own for own, theirs in pairs)


def report(shapes: list[Shape], times: Times, scale: float, unit: str) -> None:
    """The times, and how Sconce does."""

    def duration(shape: Shape, contestant: str) -> str:
        return f"{statistics.median(times[shape.name][contestant]) * scale:,.2f}"

    contestants = list(times[shapes[0].name])
    show(f"batch, {unit}", shapes, contestants, duration)
    for variant in filter(contestants.__contains__, VARIANTS):

        def gain(shape: Shape, other: str, variant: str = variant) -> str:
            return f"{ratio(times, shape, variant, other):.2f}"

        others = [contestant for contestant in contestants if contestant != variant]
        show(f"{title(variant)}, times as fast as", shapes, others, gain)


def report_speed(shapes: list[Shape], times: Times, what: str) -> None:
    def speed(shape: Shape, contestant: str) -> str:
        return f"{shape.gigaflops / statistics.median(times[shape.name][contestant]) * 1000:.0f}"

    show(what, shapes, list(times[shapes[0].name]), speed)


def peak() -> float:
    """The most GFLOP/s of one core in f32: multiply-adds in registers alone."""
    command = ["taskset", "-c", CORES[0], os.environ["COMPUTE_BIN"], "--peak"]
    return max(float(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout) for _ in range(ROUNDS))


def draw(shapes: list[Shape], times: Times, path: pathlib.Path) -> None:
    """A bar for each contestant and shape: speed, where the reference is 1."""
    contestants = list(times[shapes[0].name])
    speeds = [[ratio(times, shape, name, REFERENCE) for name in contestants] for shape in shapes]
    scale = 520 / max(map(max, speeds))
    y, parts = 40, []
    for shape, row in zip(shapes, speeds):
        parts.append(f'<text x="8" y="{y + 12}" font-weight="bold">{shape.name}</text>')
        for contestant, speed in zip(contestants, row):
            colour = COLOURS[contestant.split("-")[0]]
            parts.append(f'<text x="250" y="{y + 12}" text-anchor="end">{title(contestant)}</text>')
            parts.append(f'<rect x="256" y="{y + 2}" width="{speed * scale:.1f}" height="12" fill="{colour}"/>')
            parts.append(f'<text x="{262 + speed * scale:.1f}" y="{y + 12}">{speed:.2f}</text>')
            y += 16
        y += 12
    line = 256 + scale
    parts.append(f'<path d="M{line:.1f} 34V{y - 8}" stroke="#333" stroke-dasharray="3 3"/>')
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="840" height="{y}" font-family="sans-serif" font-size="12">'
        '<rect width="100%" height="100%" fill="white"/>'
        f'<text x="8" y="20" font-size="14">all-MiniLM-L6-v2, one thread: speed, {title(REFERENCE)} = 1</text>'
        f"{''.join(parts)}</svg>\n"
    )


def main() -> None:
    if REFERENCE not in PEERS:
        PEERS.insert(0, REFERENCE)
    PEERS.sort(key=lambda name: name != REFERENCE)
    for name in PEERS + VARIANTS:
        if name.split("-")[0] not in RUNTIMES or name.count("-") != 1:
            fail(f"contestant {name!r}: expected RUNTIME-PRECISION with a runtime of {', '.join(RUNTIMES)}")
    names, wide_names, mlp_rows, images = (os.environ[name].split() for name in LISTS)
    config = json.loads((MINILM / "config.json").read_bytes()) if names or wide_names else {}
    shapes, wide = ([Shape.of_tokens(name, config) for name in part] for part in (names, wide_names))
    before = peak() if shapes or images else 0

    if shapes:
        contestants = PEERS + VARIANTS
        times = contest("all-MiniLM-L6-v2, one thread", contestants, "minilm", 1, shapes)
        report(shapes, times, 1, "ms")
        for shape in shapes:
            if shape.padding > 1:
                padding = f"{shape.padding:.2f} times as fast"
                print(f"\nThe peers pad {shape.name}, Sconce packs it: with kernels as good as theirs it is {padding}.")

        report_speed(shapes, times, "GFLOP/s, padding not counted")
        draw(shapes, times, PLOT)
        note(f"plot: {PLOT}")
    if wide:
        times = contest("all-MiniLM-L6-v2, two threads", PEERS + VARIANTS, "minilm", 2, wide)
        report(wide, times, 1, "ms")
    singles = [name for name in PEERS + VARIANTS if name.split("-")[1] in ("f32", "avx512")]
    rows = [Shape(rows, [30] * int(rows)) for rows in mlp_rows]
    if rows:
        times = contest("MLP of 30-64-64-2, one thread", singles, "mlp", 1, rows)
        report(rows, times, 1000, "µs")
        print("\nCalls into ONNX Runtime, OpenVINO and PyTorch come from Python, with inputs and outputs in place.")
    seeing = [name for name in PEERS + VARIANTS if not name.startswith("candle") and name != "onnxruntime-int8"]
    for model, name in vision.TITLES.items() if images else ():
        batches = [Shape(rows, [vision.PIXELS] * int(rows), int(rows) * vision.gigaflops(model)) for rows in images]
        times = contest(f"{name} with random weights, {vision.SIDE} by {vision.SIDE}, one thread", seeing, model, 1, batches)
        report(batches, times, 1, "ms")
        report_speed(batches, times, "GFLOP/s")
    if before:
        print(f"\nThe core's peak, GFLOP/s of multiply-adds in registers, f32: {max(before, peak()):.0f}.")


if __name__ == "__main__":
    main()
