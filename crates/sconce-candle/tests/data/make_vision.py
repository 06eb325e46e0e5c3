# Writes the tiny image classifiers in vision/ (random weights), a few images, and what transformers computes with them.
#
# Made with Python 3.11 and: torch==2.15.0  transformers==5.23.0  pillow==13.0.0  safetensors==0.8.0
# Run: python make_vision.py
# With a folder as argument it writes models of published sizes there instead, for the last test in `../vision.rs`.
import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

HERE = Path(__file__).resolve().parent / "vision"
NAMES = ["candle", "sconce", "wall", "wick"]
LABELS = dict(id2label=dict(enumerate(NAMES)), label2id={name: i for i, name in enumerate(NAMES)})
SIZES = dict(
    vit=ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=28, image_size=32,
                  patch_size=8, **LABELS),
    vit_no_bias=ViTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=20,
                          image_size=24, patch_size=8, qkv_bias=False, hidden_act="gelu_new", **LABELS),
    resnet_basic=ResNetConfig(embedding_size=8, hidden_sizes=[8, 12, 16], depths=[2, 1, 1], layer_type="basic",
                              downsample_in_first_stage=True, **LABELS),
    resnet_bottleneck=ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2], **LABELS),
    resnet_downsample=ResNetConfig(embedding_size=4, hidden_sizes=[8, 16], depths=[1, 1],
                                   downsample_in_bottleneck=True, **LABELS),
)
PROCESSORS = dict(
    vit=ViTImageProcessorPil(size={"height": 32, "width": 32}),
    vit_no_bias=ViTImageProcessorPil(size={"shortest_edge": 27}, do_center_crop=True, resample=3,
                                     crop_size={"height": 24, "width": 24}, image_mean=[0.4, 0.5, 0.6]),
    resnet_basic=ConvNextImageProcessorPil(size={"shortest_edge": 24}, crop_pct=0.875),
    resnet_bottleneck=ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=0.875, resample=2),
    resnet_downsample=ViTImageProcessorPil(size={"height": 30, "width": 25}, resample=1, do_normalize=False),
)


def randomize(model):
    with torch.no_grad():
        for name, parameter in list(model.named_parameters()) + list(model.named_buffers()):
            if parameter.dim() == 4:
                parameter.normal_(0.0, (2.0 / parameter[0].numel()) ** 0.5)
            elif name.endswith("running_var"):
                parameter.uniform_(0.5, 1.5)
            elif parameter.is_floating_point():
                parameter.normal_(0.0, 0.25)
                if "norm" in name and name.endswith("weight"):
                    parameter.add_(1.0)


def probabilities(model, pixels):
    with torch.no_grad():
        return torch.softmax(model(pixel_values=torch.tensor(pixels)).logits, -1)


def rounded(rows):
    return [[round(float(x), 7) for x in row] for row in rows]


def fixed(rows, height, width):
    """Pixel values that a test can make again."""
    values = np.sin(np.arange(rows * 3 * height * width, dtype=np.float64) * 0.37).astype(np.float32)
    return values.reshape(rows, 3, height, width)


def images(folder):
    folder.mkdir()
    generator = np.random.default_rng(0)

    def picture(height, width, channels):
        y, x = np.mgrid[0:height, 0:width]
        waves = [np.sin(x / (3 + c) + c) * np.cos(y / (5 - c / 2)) for c in range(channels)]
        noise = generator.normal(0, 12, (height, width, channels))
        return np.clip(np.stack(waves, -1) * 90 + 128 + noise, 0, 255).astype(np.uint8)

    Image.fromarray(picture(61, 45, 4)).save(folder / "alpha.png")
    Image.fromarray(picture(50, 71, 3)).save(folder / "colour.jpg", quality=92)
    Image.fromarray(picture(90, 64, 3)).save(folder / "progressive.jpg", quality=85, progressive=True, subsampling=0)
    Image.fromarray(picture(29, 37, 3)).quantize(16).save(folder / "palette.png", transparency=3)
    Image.fromarray(picture(40, 23, 1)[..., 0]).save(folder / "grey.png")
    Image.fromarray(picture(40, 23, 1)[..., 0]).save(folder / "grey.jpg", quality=90)
    Image.fromarray(picture(27, 31, 1)[..., 0].astype(np.uint16) * 2).save(folder / "grey_16.png")
    Image.fromarray(picture(27, 31, 1)[..., 0] > 128).save(folder / "bits.png")
    Image.fromarray(np.stack([picture(20, 20, 1)[..., 0]] * 4, -1), "CMYK").save(folder / "cmyk.jpg")
    return sorted(path for path in folder.iterdir() if path.name != "cmyk.jpg")


def write(name, pictures):
    torch.manual_seed(0)
    config = SIZES[name]
    model = (ViTForImageClassification if name.startswith("vit") else ResNetForImageClassification)(config)
    randomize(model)
    model.eval()
    folder, processor = HERE / name, PROCESSORS[name]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    opened = [Image.open(path).convert("RGB") for path in pictures]
    bytes_only = dict(do_rescale=False, do_normalize=False)
    cropped = [np.asarray(processor(image, **bytes_only)["pixel_values"][0], dtype=np.uint8) for image in opened]
    (folder / "pixels.bin").write_bytes(b"".join(image.tobytes() for image in cropped))
    values = np.stack([np.asarray(processor(image)["pixel_values"][0], dtype=np.float32) for image in opened])
    expected = {
        "size": values.shape[2:],
        "images": [path.name for path in pictures],
        "image_probabilities": rounded(probabilities(model, values)),
        "fixed_probabilities": rounded(probabilities(model, fixed(3, *values.shape[2:]))),
    }
    (folder / "expected.json").write_text(json.dumps(expected))


def write_published_sizes(root, rows=8):
    torch.set_num_threads(1)
    for name, config, model, processor in [
        ("vit_b_16", ViTConfig(num_labels=1000), ViTForImageClassification, ViTImageProcessorPil()),
        ("resnet_50", ResNetConfig(num_labels=1000, downsample_in_bottleneck=False), ResNetForImageClassification,
         ConvNextImageProcessorPil(size={"shortest_edge": 224})),
    ]:
        torch.manual_seed(0)
        model = model(config)
        model.eval()
        folder = root / name
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        pixels = fixed(rows, 224, 224)
        (folder / "expected.json").write_text(json.dumps(probabilities(model, pixels).tolist()))
        times = []
        for _ in range(3):
            start = time.perf_counter()
            probabilities(model, pixels)
            times.append(time.perf_counter() - start)
        print(f"{name}: PyTorch, one thread, {rows} images: {min(times) * 1000:.0f} ms")


def main():
    if len(sys.argv) > 1:
        return write_published_sizes(Path(sys.argv[1]))
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir()
    pictures = images(HERE / "images")
    for name in SIZES:
        write(name, pictures)


if __name__ == "__main__":
    main()
