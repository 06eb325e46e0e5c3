"""References from files, and files held against them, as a pipeline runs it."""

import json
import random
import subprocess

import pytest

from server import setting


def run(*words):
    command = [setting("SCONCE_BIN"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def rows(seed, count, shift=0.0, missing=0.0):
    generator = random.Random(seed)
    for at in range(count):
        score = generator.random()
        amount = "" if generator.random() < missing else f"{generator.gauss(50 + shift * 10, 10):.4f}"
        plan = generator.choices(["basic", "full", "trial"], [6, 3, 1])[0]
        yield [at, f"2026-01-01 {at:06}", amount, plan, int(generator.random() < score), f"{score:.4f}"]


def write(path, *parts):
    lines = ["id,at,amount,plan,churned,score"]
    lines += [",".join(map(str, row)) for part in parts for row in part]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def reference(tmp_path):
    data, out = write(tmp_path / "train.csv", rows(1, 4000)), tmp_path / "reference.json"
    done = run("monitor", "fit", "--data", data, "--out", out, "--label", "churned", "--score", "score")
    assert done.returncode == 0, done.stderr
    assert "`id` only counts rows" in done.stdout and "`at` only counts rows" in done.stdout
    assert "3 columns of 4000 rows" in done.stdout
    return out


def test_what_has_not_changed_is_stable_and_its_accuracy_is_estimated(reference, tmp_path):
    current = write(tmp_path / "same.csv", rows(2, 2000))
    done = run("drift", "compare", reference, current, "--label", "churned", "--score", "score", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["verdict"]["state"] == "stable"
    estimate, realised = found["estimate"]["accuracy"], found["realised"]["accuracy"]
    assert found["estimate"]["trust"] == "holds"
    assert estimate["band"]["low"] <= realised <= estimate["band"]["high"]


def test_a_drift_is_named_dated_and_told_by_the_exit_code(reference, tmp_path):
    current = write(tmp_path / "moved.csv", rows(3, 3000), rows(4, 2000, shift=0.8, missing=0.2))
    page = tmp_path / "drift.html"
    done = run("drift", "compare", reference, current, "--chunk", 1000, "--json", "--html", page)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    drifted = [it["feature"] for it in found["verdict"]["features"] if it["state"] == "drifted"]
    assert drifted == ["amount"]
    assert [chunk["verdict"]["state"] for chunk in found["chunks"]] == ["stable"] * 3 + ["drifted"] * 2
    failed = [it["kind"] for it in found["verdict"]["checks"] if it["state"] == "drifted"]
    assert failed == ["missing"]
    text = page.read_text()
    assert "<svg" in text and "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    markdown = run("drift", "compare", reference, current, "--md").stdout
    assert "| amount | drifted |" in markdown and "## Quality" in markdown
    told = run("drift", "compare", reference, current).stdout
    assert "drifted: 1 of 3 features (amount)" in told and "amount: missing" in told


def test_few_rows_are_not_enough_evidence(reference, tmp_path):
    current = write(tmp_path / "few.csv", rows(5, 50))
    done = run("drift", "compare", reference, current, "--json")
    assert (done.returncode, json.loads(done.stdout)["verdict"]["state"]) == (0, "not_enough_evidence")


def test_errors_end_with_2_and_say_what_is_wrong(reference, tmp_path):
    current = write(tmp_path / "same.csv", rows(2, 10))
    (tmp_path / "newer.json").write_text(reference.read_text().replace('"format":1', '"format":9', 1))
    for words, says in [
        ((reference, tmp_path / "absent.csv"), "absent.csv"),
        ((tmp_path / "newer.json", current), "format 9"),
        ((reference, write(tmp_path / "empty.csv")), "at least one row"),
        ((current, current, "--ignore", "absent"), "expected one of the columns"),
        ((reference, current, "--level", "2"), "level"),
    ]:
        done = run("drift", "compare", *words)
        assert done.returncode == 2 and says in done.stderr, (words, done.stderr)
