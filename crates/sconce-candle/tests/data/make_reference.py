# Writes the tiny Hugging Face models in this folder (random weights) and what transformers computes with them.
#
# Made with Python 3.11 and: torch==2.15.0  transformers==5.23.0  tokenizers==0.23.3  safetensors==0.8.0
# Run: python make_reference.py
import json
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig, BertForSequenceClassification, BertModel,
    DistilBertConfig, DistilBertForSequenceClassification, DistilBertModel,
    RobertaConfig, RobertaForSequenceClassification, RobertaModel, XLMRobertaConfig, XLMRobertaModel,
)

HERE = Path(__file__).resolve().parent
VOCAB = 96
TEXTS = [
    "the candle burns",
    "a sconce is the bracket that holds candles on a wall",
    "light",
    "wall of light and wax, the long wick of the candle that burns on and on until there is nothing left of it at all",
]
CORPUS = TEXTS + ["wax and wick", "left and right", "holding the light on the wall"]
SIZES = dict(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=28)
DISTIL = dict(vocab_size=VOCAB, dim=16, n_layers=2, n_heads=2, hidden_dim=28, max_position_embeddings=24)
NAMES = ["no", "yes", "maybe"]
LABELS = dict(id2label=dict(enumerate(NAMES)), label2id={name: i for i, name in enumerate(NAMES)})


def wordpiece(max_length):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=VOCAB, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.enable_truncation(max_length)
    tokenizer.enable_padding(length=max_length)  # as many published files have it: it must be ignored
    return tokenizer


def bpe(max_length):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=special)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.enable_truncation(max_length)
    return tokenizer


def randomize(model):
    # The initial weights are so small that attention would hardly matter.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.25)
            if name.endswith("LayerNorm.weight") or name.endswith("layer_norm.weight"):
                parameter.add_(1.0)
            parameter.copy_(parameter.half().float())  # exact in F16 too, for the model that is stored so


def write(name, model, tokenizer, pooling=None, normalize=False, sigmoid=False, rename=None):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    randomize(model)
    model.eval()
    model.save_pretrained(folder)
    if rename:
        rename(folder / "model.safetensors")
    tokenizer.save(str(folder / "tokenizer.json"))
    for extra in folder.glob("generation_config.json"):
        extra.unlink()
    if pooling:
        (folder / "1_Pooling").mkdir()
        modes = {"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean"}
        (folder / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 16, **modes}))
        modules = [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ]
        if normalize:
            modules.append({"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"})
        (folder / "modules.json").write_text(json.dumps(modules))
    tokenizer.no_padding()
    cases = []
    pad = model.config.pad_token_id
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        cases.append({"text": text, "ids": ids, "output": run(model, [ids], None, pooling, normalize, sigmoid)[0]})
    # One padded batch on the left, where positions matter, and one on the right.
    longest = max(len(case["ids"]) for case in cases)
    batches = []
    for left in (False, True):
        if left and pooling != "mean":
            continue
        ids, mask = [], []
        for case in cases:
            fill = [pad] * (longest - len(case["ids"]))
            ids.append(fill + case["ids"] if left else case["ids"] + fill)
            ones = [1] * len(case["ids"])
            mask.append([0] * len(fill) + ones if left else ones + [0] * len(fill))
        batches.append({"ids": ids, "mask": mask, "output": run(model, ids, mask, pooling, normalize, sigmoid)})
    (folder / "expected.json").write_text(json.dumps({"texts": cases, "batches": batches}))


def run(model, ids, mask, pooling, normalize, sigmoid):
    ids = torch.tensor(ids)
    mask = torch.ones_like(ids) if mask is None else torch.tensor(mask)
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask)
    if pooling is None:
        out = torch.sigmoid(out.logits) if sigmoid else torch.softmax(out.logits, -1)
    else:
        hidden = out.last_hidden_state
        weights = mask.unsqueeze(-1).float()
        out = hidden[:, 0] if pooling == "cls" else (hidden * weights).sum(1) / weights.sum(1)
        if normalize:
            out = torch.nn.functional.normalize(out, dim=1)
    return [[round(float(x), 7) for x in row] for row in out]


def legacy_names(path):
    """Names as the first BERT checkpoints had them: a prefix, gamma and beta. Stored as F16."""
    from safetensors.torch import load_file, save_file
    tensors = load_file(path)
    old = {}
    for name, tensor in tensors.items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        old["bert." + name] = tensor.half()
    save_file(old, path)


def main():
    torch.manual_seed(0)
    bert = dict(max_position_embeddings=24, **SIZES)
    write("bert_embedding", BertModel(BertConfig(**bert)), wordpiece(24), "mean", True)
    write("bert_legacy", BertModel(BertConfig(hidden_act="gelu_new", **bert), add_pooling_layer=False),
          wordpiece(24), "cls", rename=legacy_names)
    write("bert_classification", BertForSequenceClassification(BertConfig(**bert, **LABELS)), wordpiece(24))
    write("distilbert_embedding", DistilBertModel(DistilBertConfig(**DISTIL)), wordpiece(24), "mean")
    write("distilbert_classification",
          DistilBertForSequenceClassification(DistilBertConfig(**DISTIL, **LABELS)), wordpiece(24))
    roberta = dict(max_position_embeddings=26, type_vocab_size=1, **SIZES)
    write("roberta_embedding", RobertaModel(RobertaConfig(**roberta)), bpe(24), "mean")
    write("roberta_classification", RobertaForSequenceClassification(
        RobertaConfig(**roberta, **LABELS, problem_type="multi_label_classification")), bpe(24), sigmoid=True)
    write("xlm_roberta_embedding", XLMRobertaModel(XLMRobertaConfig(**roberta), add_pooling_layer=False),
          bpe(24), "cls", True)


if __name__ == "__main__":
    main()
