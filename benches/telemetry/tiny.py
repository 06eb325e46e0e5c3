"""Writes the tiny MLP of 16-64-64-2, with weights that are the same each time, into a folder."""

import json, pathlib, random, struct, sys

folder = pathlib.Path(sys.argv[1])
generator = random.Random(1)
header, data = {}, b""
for layer, (columns, inner) in enumerate([(64, 16), (64, 64), (2, 64)]):
    for name, shape in [("weight", [columns, inner]), ("bias", [columns])]:
        values = [generator.uniform(-0.2, 0.2) for _ in range(columns * (inner if name == "weight" else 1))]
        start = len(data)
        data += struct.pack(f"<{len(values)}f", *values)
        header[f"layers.{layer}.{name}"] = {"dtype": "F32", "shape": shape, "data_offsets": [start, len(data)]}
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
(folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
(folder / "model.toml").write_text('family = "tabular"\ntask = "classification"\n')
