# Trains the two demo models and writes every other data file in this folder.
#
# Made with Python 3.11 and:
#   scikit-learn==1.9.1  numpy==2.4.6  scipy==1.17.1  safetensors==0.8.0
#
# Run: python train.py      (re-running gives byte-identical files)
import os

for var in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[var] = "1"  # one thread: the same order of sums every time

import csv
import tomllib
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

HERE = Path(__file__).resolve().parent
SEED = 0
HOLDOUT_ROWS = 171
LABELS = ["malignant", "benign"]  # class 0, class 1
DESCRIPTIONS = {
    1: "Logistic regression on the Wisconsin diagnostic breast cancer data.",
    2: "Two-hidden-layer MLP on the Wisconsin diagnostic breast cancer data.",
}


def num(x):
    """The shortest decimal that reads back as the same f32, without an exponent."""
    return np.format_float_positional(np.float32(x), unique=True, trim="0")


def two_logits(weight, bias):
    """A single logistic output as two: logits [0, z], whose softmax is sigmoid(z)."""
    return np.vstack([np.zeros_like(weight), weight]), np.concatenate([[0.0], bias])


def write_model(version, layers, names, mean, std, accuracy, roc_auc):
    folder = HERE / "breast_cancer" / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for i, (weight, bias) in enumerate(layers):
        tensors[f"layers.{i}.weight"] = np.ascontiguousarray(weight, dtype=np.float32)
        tensors[f"layers.{i}.bias"] = np.ascontiguousarray(bias, dtype=np.float32)
    (folder / "model.safetensors").write_bytes(save(tensors))
    lines = [
        'family = "tabular"',
        'task = "classification"',
        f'description = "{DESCRIPTIONS[version]}"',
        'activation = "relu"',
        'labels = ["malignant", "benign"]',
        "max_batch_size = 64",
        "",
        "[metrics]                 # measured on the held-out rows by train.py",
        f"accuracy = {accuracy:.4f}",
        f"roc_auc = {roc_auc:.4f}",
    ]
    for name, m, s in zip(names, mean, std):
        lines += ["", "[[features]]", f'name = "{name}"', 'type = "numeric"']
        lines += [f"mean = {num(m)}", f"std = {num(s)}"]
    write_text(folder / "model.toml", lines)


def write_text(path, lines):
    path.write_bytes(("\n".join(lines) + "\n").encode())


def forward(version):
    """Benign probability of each holdout row, in float64, from the written files only."""
    folder = HERE / "breast_cancer" / str(version)
    config = tomllib.loads((folder / "model.toml").read_text())
    tensors = load_file(folder / "model.safetensors")
    with open(HERE / "holdout.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    features = config["features"]
    x = np.array([[float(r[f["name"]]) for f in features] for r in rows])
    x = (x - [f["mean"] for f in features]) / [f["std"] for f in features]
    last = len(tensors) // 2 - 1
    for i in range(last + 1):
        weight = tensors[f"layers.{i}.weight"].astype(np.float64)
        x = x @ weight.T + tensors[f"layers.{i}.bias"].astype(np.float64)
        if i < last:
            x = np.maximum(x, 0.0)
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return (e / e.sum(axis=1, keepdims=True))[:, config["labels"].index("benign")]


def main():
    data = load_breast_cancer()
    assert list(data.target_names) == LABELS
    names = [str(n).replace(" ", "_") for n in data.feature_names]
    x_train, x_hold, y_train, y_hold = train_test_split(
        data.data, data.target, test_size=HOLDOUT_ROWS, stratify=data.target, random_state=SEED
    )
    # Standardise with the very decimals that model.toml will hold.
    mean = np.array([float(num(v)) for v in x_train.mean(axis=0)])
    std = np.array([float(num(v)) for v in x_train.std(axis=0)])
    z_train, z_hold = (x_train - mean) / std, (x_hold - mean) / std

    lines = [",".join(names + ["diagnosis"])]
    for row, y in zip(x_hold, y_hold):
        lines.append(",".join([num(v) for v in row] + [LABELS[y]]))
    write_text(HERE / "holdout.csv", lines)

    logistic = LogisticRegression(max_iter=1000, random_state=SEED).fit(z_train, y_train)
    mlp = MLPClassifier((64, 64), alpha=1.0, max_iter=1000, random_state=SEED).fit(z_train, y_train)
    hidden = [(w.T, b) for w, b in zip(mlp.coefs_[:-1], mlp.intercepts_[:-1])]
    layers = {
        1: [two_logits(logistic.coef_, logistic.intercept_)],
        2: hidden + [two_logits(mlp.coefs_[-1].T, mlp.intercepts_[-1])],
    }

    probs = []
    for version, model in ((1, logistic), (2, mlp)):
        want = model.predict_proba(z_hold)[:, 1]
        accuracy = accuracy_score(y_hold, model.predict(z_hold))
        roc_auc = roc_auc_score(y_hold, want)
        write_model(version, layers[version], names, mean, std, accuracy, roc_auc)
        got = forward(version)
        diff = np.abs(got - want).max()
        assert diff <= 1e-5, f"version {version}: forward pass differs by {diff}"
        assert accuracy_score(y_hold, got > 0.5) == accuracy
        assert abs(roc_auc_score(y_hold, got) - roc_auc) < 1e-4
        print(f"version {version}: accuracy {accuracy:.4f}  roc_auc {roc_auc:.4f}  max diff {diff:.1e}")
        probs.append(got)
    write_text(HERE / "expected.csv", ["p1,p2"] + [f"{a:.8f},{b:.8f}" for a, b in zip(*probs)])
    print(f"{len(y_train)} training rows, {len(y_hold)} held-out rows")


if __name__ == "__main__":
    main()
