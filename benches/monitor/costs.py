"""What peers take for the same: River's detectors a value, Evidently's drift report of 1,000 rows and 20 columns."""

import statistics
import sys
import time

import numpy
import pandas
from river import drift

rounds = int(sys.argv[1])
random = numpy.random.default_rng(1)
bits = (random.random(50_000) < 0.2).astype(int).tolist()


def nanoseconds_each(detector):
    started = time.perf_counter()
    for bit in bits:
        detector.update(bit)
    return (time.perf_counter() - started) / len(bits) * 1e9


print("| | median |")
print("|---|--:|")
for name, make in [
    ("River ADWIN", drift.ADWIN),
    ("River Page-Hinkley", drift.PageHinkley),
    ("River HDDM_A", drift.binary.HDDMA),
    ("River HDDM_W", drift.binary.HDDMW),
]:
    print(f"| {name}, a value | {statistics.median(nanoseconds_each(make()) for _ in range(rounds)):.0f} ns |")

from evidently import Report
from evidently.presets import DataDriftPreset

columns = [f"x{at}" for at in range(20)]
reference, current = (pandas.DataFrame(random.normal(size=(rows, 20)), columns=columns) for rows in (5_000, 1_000))
times = []
for _ in range(rounds):
    started = time.perf_counter()
    Report([DataDriftPreset()]).run(current, reference)
    times.append((time.perf_counter() - started) * 1e3)
print(f"| Evidently drift report, 1,000 rows of 20 columns | {statistics.median(times):.0f} ms |")
