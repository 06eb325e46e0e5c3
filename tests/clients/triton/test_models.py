"""The two real models, against answers recorded from their reference implementations."""

import csv
import json
import pydoc_data.topics
import re
from pathlib import Path

import numpy
import pytest
import tritonclient.grpc
from grpc import StatusCode

from server import setting
from wire import PATIENCE, assert_still_serves, bytes_elements, refused, request, tensor

LABELS = ["malignant", "benign"]


def table(name):
    with open(Path(setting("SCONCE_DEMO")) / name, newline="") as file:
        header, *rows = csv.reader(file)
    return header, rows


@pytest.fixture(scope="module")
def holdout():
    """Names of the 30 features, and the held-out rows [171, 30]."""
    header, rows = table("holdout.csv")
    assert header[-1] == "diagnosis"
    return header[:-1], numpy.array([row[:-1] for row in rows], numpy.float32)


def features(rows):
    return [tensor("features", rows)]


@pytest.mark.parametrize("version, column", [("1", 0), ("2", 1), ("", 1)])
def test_breast_cancer_versions(client, holdout, version, column):
    _, rows = holdout
    _, expected = table("expected.csv")
    benign = numpy.array(expected, numpy.float64)[:, column]
    got = []
    for start in range(0, len(rows), 64):
        result = client.infer("breast_cancer", features(rows[start : start + 64]), version, client_timeout=PATIENCE)
        assert result.get_response().model_version == (version or "2")
        got.append(result.as_numpy("probabilities"))
    got = numpy.concatenate(got)
    assert got.shape == (171, 2)
    assert numpy.abs(got[:, 1] - benign).max() <= 1e-5
    assert numpy.abs(got.sum(axis=1) - 1).max() <= 1e-5


def test_breast_cancer_by_column(client, holdout):
    names, rows = holdout
    columns = [tensor(name, rows[:5, [number]]) for number, name in enumerate(names)]
    by_column = client.infer("breast_cancer", columns, "2", client_timeout=PATIENCE).as_numpy("probabilities")
    by_row = client.infer("breast_cancer", features(rows[:5]), "2", client_timeout=PATIENCE).as_numpy("probabilities")
    assert numpy.abs(by_column - by_row).max() <= 1e-6


def test_breast_cancer_wants_every_column(client, stub, holdout):
    names, rows = holdout
    columns = [tensor(name, rows[:1, [number]]) for number, name in enumerate(names)][:-1]
    with refused(StatusCode.INVALID_ARGUMENT, mentions=names[-1]):
        client.infer("breast_cancer", columns, client_timeout=PATIENCE)
    assert_still_serves(stub)


@pytest.mark.parametrize("wanted", [1, 2])
def test_classification(client, holdout, wanted):
    _, rows = holdout
    classes = [tritonclient.grpc.InferRequestedOutput("probabilities", class_count=wanted)]
    result = client.infer("breast_cancer", features(rows[:8]), "2", outputs=classes, client_timeout=PATIENCE)
    plain = client.infer("breast_cancer", features(rows[:8]), "2", client_timeout=PATIENCE).as_numpy("probabilities")
    output = result.get_output("probabilities")
    assert output.datatype == "BYTES" and list(output.shape) == [8, wanted]
    for probabilities, ranked in zip(plain, result.as_numpy("probabilities"), strict=True):
        best_first = numpy.argsort(-probabilities)[:wanted]
        for index, text in zip(best_first, ranked, strict=True):
            value, position, label = text.decode().split(":")
            assert int(position) == index and label == LABELS[index]
            assert abs(float(value) - probabilities[index]) <= 1e-5


def test_classification_without_labels(client):
    classes = [tritonclient.grpc.InferRequestedOutput("OUTPUT0", class_count=3)]
    values = numpy.array([[1, 8, -3, 5]], numpy.float32)
    result = client.infer("identity", [tensor("INPUT0", values)], outputs=classes, client_timeout=PATIENCE)
    pairs = [text.decode().split(":") for text in result.as_numpy("OUTPUT0")[0]]
    assert [(float(value), int(position)) for value, position in pairs] == [(8, 1), (5, 3), (1, 0)]


@pytest.fixture(scope="module")
def reference():
    items = json.loads(Path(__file__).parent.with_name("minilm_reference.json").read_text())["items"]
    assert len(items) >= 40
    return items


def text_tensor(*texts, shape=None):
    array = numpy.array([text.encode() for text in texts], object)
    return tensor("text", array.reshape(shape or [len(texts), 1]))


def assert_close(got, items):
    expected = numpy.array([one["embedding"] for one in items])
    assert got.shape == expected.shape
    worst = numpy.abs(got - expected).max(axis=1)
    wrong = {items[index]["text"][:40]: float(worst[index]) for index in numpy.flatnonzero(~(worst <= 1e-4))}
    assert not wrong, f"largest difference of an element, by text: {wrong}"
    assert numpy.abs(numpy.linalg.norm(got, axis=1) - 1).max() <= 1e-5


def test_minilm_one_text_at_a_time(client, reference):
    for item in reference:
        got = client.infer("minilm", [text_tensor(item["text"])], client_timeout=PATIENCE).as_numpy("embedding")
        assert_close(got, [item])


def test_minilm_all_texts_in_one_batch(client, reference):
    texts = text_tensor(*(item["text"] for item in reference))
    assert_close(client.infer("minilm", [texts], client_timeout=PATIENCE).as_numpy("embedding"), reference)


@pytest.fixture(scope="module")
def sentences():
    """A thousand sentences of English prose that comes with Python: its reference manual."""
    prose = re.sub(r"\s+", " ", re.sub(r"[`*_|]", "", " ".join(pydoc_data.topics.topics.values())))
    found = dict.fromkeys(re.split(r"(?<=[.!?]) (?=[A-Z])", prose))
    words = [text for text in found if 20 <= len(text) <= 300 and re.fullmatch(r"[A-Z][A-Za-z ,;:'\"()-]+[.!?]", text)]
    assert len(words) >= 1000
    return words[:1000]


@pytest.fixture(scope="module")
def in_f32(client, sentences):
    return embed(client, "minilm", sentences)


def embed(client, model, texts):
    batches = [text_tensor(*texts[start : start + 50]) for start in range(0, len(texts), 50)]
    answers = [client.infer(model, [batch], client_timeout=PATIENCE) for batch in batches]
    return numpy.concatenate([answer.as_numpy("embedding") for answer in answers])


@pytest.mark.parametrize("model, least", [("minilm_bf16", 0.9995), ("minilm_int8", 0.99)])
def test_minilm_in_lower_precision_stays_near(client, sentences, in_f32, model, least):
    cosines = (embed(client, model, sentences) * in_f32).sum(axis=1)
    print(f"{model}: cosine to f32 at least {cosines.min():.5f}, mean {cosines.mean():.5f}")
    assert cosines.min() >= least, sentences[cosines.argmin()]


def test_minilm_takes_a_flat_list_of_texts(client, reference):
    texts = text_tensor(*(item["text"] for item in reference[:5]), shape=[5])
    assert_close(client.infer("minilm", [texts], client_timeout=PATIENCE).as_numpy("embedding"), reference[:5])


def test_minilm_takes_token_ids(client, reference):
    for item in [item for item in reference if "input_ids" in item][::4]:
        ids = numpy.array([item["input_ids"]], numpy.int64)
        assert_close(client.infer("minilm", [tensor("input_ids", ids)], client_timeout=PATIENCE).as_numpy("embedding"), [item])


def test_minilm_ignores_what_the_mask_hides(client, reference):
    items = [item for item in reference if "input_ids" in item]
    width = max(len(item["input_ids"]) for item in items)
    # 2054 is an ordinary word: were it not hidden, it would change the answer.
    ids = numpy.full((len(items), width), 2054, numpy.int64)
    mask = numpy.zeros_like(ids)
    for place, item in enumerate(items):
        ids[place, : len(item["input_ids"])] = item["input_ids"]
        mask[place, : len(item["input_ids"])] = 1
    inputs = [tensor("input_ids", ids), tensor("attention_mask", mask), tensor("token_type_ids", numpy.zeros_like(ids))]
    assert_close(client.infer("minilm", inputs, client_timeout=PATIENCE).as_numpy("embedding"), items)


def test_minilm_typed_text(stub, reference):
    item = reference[10]
    message = request("minilm", ("text", "BYTES", [1, 1], {"bytes_contents": [item["text"].encode()]}))
    (output,) = stub.ModelInfer(message, timeout=PATIENCE).outputs
    assert_close(numpy.array([output.contents.fp32_contents]), [item])


def test_minilm_text_up_to_its_bound(client):
    text = "word " * (256 * 1024 // 5)
    assert 256 * 1024 - 5 < len(text) <= 256 * 1024
    client.infer("minilm", [text_tensor(text)], client_timeout=PATIENCE)


BAD_TEXTS = {
    "one mebibyte": b"a" * (1 << 20),
    "not UTF-8": b"caf\xe9",
    "cut UTF-8": "🕯".encode()[:3],
}


@pytest.mark.parametrize("text", BAD_TEXTS.values(), ids=BAD_TEXTS.keys())
@pytest.mark.parametrize("place", [0, 2])
def test_bad_text_is_refused(stub, text, place):
    texts = [b"fine", b"fine", b"fine"]
    texts[place] = text
    with refused(StatusCode.INVALID_ARGUMENT, mentions="text"):
        stub.ModelInfer(request("minilm", ("text", "BYTES", [3, 1]), raw=[bytes_elements(*texts)]), timeout=PATIENCE)
    assert_still_serves(stub)


BAD_IDS = {
    "outside the vocabulary": [[101, 30522, 102]],
    "negative": [[101, -1, 102]],
    "longer than the model takes": [[101] + [2054] * 600 + [102]],
}


@pytest.mark.parametrize("ids", BAD_IDS.values(), ids=BAD_IDS.keys())
def test_bad_token_ids_are_refused(client, stub, ids):
    with refused(StatusCode.INVALID_ARGUMENT):
        client.infer("minilm", [tensor("input_ids", numpy.array(ids, numpy.int64))], client_timeout=PATIENCE)
    assert_still_serves(stub)


def test_texts_and_token_ids_together_are_refused(client, stub):
    inputs = [text_tensor("both"), tensor("input_ids", numpy.array([[101, 102]], numpy.int64))]
    with refused(StatusCode.INVALID_ARGUMENT):
        client.infer("minilm", inputs, client_timeout=PATIENCE)
    assert_still_serves(stub)
