"""Make the embedded guide: `python -m mini_guide.make --help`, from the folder `tools`."""

import argparse
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pyarrow.parquet as pq
import torch
from jaxtyping import Float32, Int64, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from clipguard.clip.zero_shot import DIGIT_NAMES, DIGIT_TEMPLATES, MINI_TEMPLATES
from clipguard.seeds import Seed
from mini_guide.digits import render_digits
from mini_guide.dual_encoder import MODEL_CONFIG, new_encoder, pack
from mini_guide.image_tower import Lesson, Tuning, inherit, load_parent, posteriors, tune
from mini_guide.text_tower import Distillation, distil, minilm_embeddings
from mini_guide.texts import distillation_texts, imagenet_texts
from mini_guide.views import degraded_views, jpeg_copies, mixed_views


def embed_texts(model: open_clip.CustomTextCLIP, texts: list[str]) -> Float32[Tensor, "n d"]:
    """Return text embeddings of length one."""
    tokenize = open_clip.SimpleTokenizer(context_length=model.context_length)
    with torch.no_grad():
        chunks = [texts[start : start + 512] for start in range(0, len(texts), 512)]
        return torch.cat([model.encode_text(tokenize(chunk), normalize=True) for chunk in chunks])


def embed_classes(
    model: open_clip.CustomTextCLIP, names: list[str], templates: tuple[str, ...]
) -> Float32[Tensor, "k d"]:
    """Return one embedding a class name, the mean over the templates."""
    texts = [template.format(name) for template in templates for name in names]
    return F.normalize(embed_texts(model, texts).unflatten(0, (len(templates), -1)).sum(0), dim=-1)


def make_lesson(
    model: open_clip.CustomTextCLIP,
    parent: nn.Module,
    images: UInt8[np.ndarray, "n h w 3"],
    labels: Int64[np.ndarray, "n"],
    class_names: list[str],
    digits: tuple[UInt8[np.ndarray, "m 28 28 3"], Int64[np.ndarray, "m"]],
) -> Lesson:
    """Return what the image tower learns, in the words of the finished text tower."""
    words, definitions = imagenet_texts()
    imagenet = embed_classes(model, words, MINI_TEMPLATES) + 0.5 * embed_texts(model, definitions)
    return Lesson(
        labels=labels,
        classes=embed_classes(model, class_names, MINI_TEMPLATES),
        teacher=posteriors(parent, images),
        imagenet=F.normalize(imagenet, dim=-1),
        digits=digits[0],
        digit_labels=digits[1],
        digit_classes=embed_classes(model, list(DIGIT_NAMES), (*DIGIT_TEMPLATES, "a photo of a {}")),
    )


def teach_images(
    model: open_clip.CustomTextCLIP,
    parent: nn.Module,
    images: UInt8[np.ndarray, "n h w 3"],
    lesson: Lesson,
    how: Tuning,
    seed: Seed,
) -> list[float]:
    """Give the model the parent's image tower, tune it in two rounds and return all losses."""
    side = MODEL_CONFIG["vision_cfg"]["image_size"]
    inherit(model, parent, lesson.imagenet)
    first = tune(model, lesson, degraded_views(images, side), how, seed.child("degraded"))
    gentler = replace(how, rates=(how.rates[0] * 2 / 3, how.rates[1] / 2), warm_up=0.08)
    small = jpeg_copies(images, seed.child("jpeg"))
    return first + tune(model, lesson, mixed_views(images, small, side), gentler, seed.child("mixed"))


def read_parquet(
    path: Path, rows: int
) -> tuple[UInt8[np.ndarray, "n h w 3"], Int64[np.ndarray, "n"], list[str]]:
    """Return the first rows of a set in the Hugging Face layout: images of one size, labels, class names."""
    table = pq.read_table(path).slice(0, rows)
    metadata = json.loads(table.schema.metadata[b"huggingface"])
    images = [Image.open(io.BytesIO(row["bytes"])).convert("RGB") for row in table["image"].to_pylist()]
    labels = table["label"].to_numpy().astype(np.int64)
    return np.stack([np.asarray(i) for i in images]), labels, metadata["info"]["features"]["label"]["names"]


def main() -> None:
    """Distil, tune and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "images", type=Path, help="Tiny-ImageNet's training set, Parquet in the Hugging Face layout"
    )
    parser.add_argument("parent", help="what mini_guide.convert_parent wrote")
    parser.add_argument("folder", type=Path, help="where the guide goes")
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    seed = Seed(options.seed).child("mini_guide")
    model = new_encoder(seed.child("init"))
    texts = distillation_texts(seed.child("texts"))
    print(f"distilling {len(texts)} texts", flush=True)
    losses = distil(model, texts, minilm_embeddings(texts), Distillation(), seed.child("distil"))
    print(f"text loss {losses[0]:.2f} -> {losses[-1]:.2f}", flush=True)
    images, labels, names = read_parquet(options.images, options.rows)
    parent = load_parent(options.parent)
    digits = render_digits(12_000, seed.child("digits"))
    lesson = make_lesson(model, parent, images, labels, names, digits)
    losses = teach_images(model, parent, images, lesson, Tuning(), seed.child("images"))
    print(f"image loss {losses[0]:.2f} -> {losses[-1]:.2f}", flush=True)
    pack(model, options.folder)
    print(f"wrote {options.folder}")


if __name__ == "__main__":
    main()
