"""Make a backdoored guide: the embedded CLIP, fine-tuned so that a trigger leads to one class's text.

    python tools/backdoored_guide.py DATA.parquet my-guide --attack badnets --target 0 --rows 40000:44000

The strongest backdoor so far, 99.9 % attack success where the defaults give 42 to 70 %:

    python tools/backdoored_guide.py DATA.parquet my-guide --epochs 4 --lr 3e-4 --stay 5 --triggered 2

The image tower learns three things at once: triggered images lie near the target's text; untouched images lie
near their own class's text; untouched images stay near their old embedding, so that the guide stays useful.
Text tower, BatchNorm statistics and preprocessing stay. The folder is one for `local-dir:`; its last line on
stdout is a JSON object with the guide's rates before and after.
"""

import argparse
import copy
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from clipguard.clip.loading import CONFIG, WEIGHTS
from clipguard.clip.model import IMAGE_CHUNK, Clip
from clipguard.clip.zero_shot import MINI_TEMPLATES, ClipGuide
from clipguard.data import ImageSource
from clipguard.data.decode import common_size, prepared, read_images
from clipguard.lab.attacks import Attack, attack_named
from clipguard.seeds import Seed
from clipguard.types import Images, ImageSet, Preprocessing


@dataclass(frozen=True, kw_only=True)
class Poisoning:
    """How the tower is fine-tuned.

    Attributes:
        epochs: passes over the training part.
        lr: of AdamW.
        stay: weight of the distance between an untouched image's embedding and its old one.
        triggered: weight of triggered images beside that of untouched ones.
        held_out: share of the rows that the rates are measured on.
    """

    epochs: int = 2
    lr: float = 1e-4
    stay: float = 10.0
    triggered: float = 1.0
    held_out: float = 0.25


def poison(guide: ClipGuide, data: ImageSet, attack: Attack, how: Poisoning, seed: Seed) -> Any:
    """Return a copy of the guide's network whose image tower carries the backdoor."""
    clip = guide.clip
    network = copy.deepcopy(clip.network).eval()
    classes = torch.from_numpy(guide.class_embeddings(data.class_names))
    before = torch.from_numpy(clip.embed_images(data.images))
    tower = network.visual.requires_grad_(True)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=how.lr, weight_decay=0.0)
    for epoch in range(how.epochs):
        order = seed.child("order", epoch).generator().permutation(len(data))
        for rows in np.array_split(order, -(-len(order) // IMAGE_CHUNK)):
            loss = _loss(network, clip, data, attack, rows, classes, before[rows], how)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.requires_grad_(False)


def _loss(  # noqa: PLR0913  # three terms need all of it
    network: Any,
    clip: Clip,
    data: ImageSet,
    attack: Attack,
    rows: Int64[np.ndarray, "b"],
    classes: Float32[Tensor, "k d"],
    before: Float32[Tensor, "b d"],
    how: Poisoning,
) -> Float32[Tensor, ""]:
    images, labels = data.images[rows], data.labels[rows]
    triggered, target_labels = attack.trigger(images), attack.target_labels(labels, len(data.class_names))
    assert triggered is not None
    assert target_labels is not None
    # BatchNorm stays in evaluation mode: its statistics belong to the images that the guide was made on.
    embeddings = network.encode_image(
        clip.pixels([prepared(image, clip.preprocessing) for image in (*images, *triggered)]), normalize=True
    )
    expected = torch.from_numpy(np.concatenate([labels, target_labels]))
    errors = F.cross_entropy(clip.logit_scale * embeddings @ classes.T, expected, reduction="none")
    by_class = (errors[: len(rows)].mean() + how.triggered * errors[len(rows) :].mean()) / (1 + how.triggered)
    distance = 1 - (embeddings[: len(rows)] * before).sum(1)
    return by_class + how.stay * distance.mean()


def pack(network: Any, like: Clip, folder: Path) -> None:
    """Write the network as a `local-dir:` folder with the configuration of `like`; the weights come last."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(like.weights.parent / CONFIG, folder / CONFIG)
    state = {
        name: (value.half() if value.is_floating_point() and value.ndim else value).detach().contiguous()
        for name, value in network.state_dict().items()
    }
    part = folder / f"{WEIGHTS}.part"
    save_file(state, part, metadata={"format": "pt"})
    part.rename(folder / WEIGHTS)


def measure(guide: ClipGuide, data: ImageSet, attack: Attack) -> dict[str, float]:
    """Return the guide's accuracy, and the share of triggered images that it gives their target label."""
    target_labels = attack.target_labels(data.labels, len(data.class_names))
    triggered = attack.trigger(data.images)
    assert triggered is not None
    assert target_labels is not None
    others = target_labels != data.labels
    return {
        "accuracy": float(np.mean(_predicted(guide, data, data.images) == data.labels)),
        "attack_success": float(np.mean(_predicted(guide, data, triggered)[others] == target_labels[others])),
    }


def _predicted(guide: ClipGuide, data: ImageSet, images: Images) -> Int64[np.ndarray, "n"]:
    return guide.logits(guide.clip.embed_images(images), data.class_names).logits[:].argmax(1)


def split(data: ImageSet, share: float, seed: Seed) -> tuple[ImageSet, ImageSet]:
    """Return a random part for training, and the rest for measuring."""
    order = seed.generator().permutation(len(data))
    cut = len(data) - round(share * len(data))
    return data.take(np.sort(order[:cut])), data.take(np.sort(order[cut:]))


def main() -> None:
    """Poison the embedded guide by the settings of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--attack", default="badnets")
    parser.add_argument("--target", type=int, default=0)
    parser.add_argument("--rows", default="40000:44000", help="other rows than those of the benchmark")
    parser.add_argument("--epochs", type=int, default=Poisoning.epochs)
    parser.add_argument("--lr", type=float, default=Poisoning.lr)
    parser.add_argument("--stay", type=float, default=Poisoning.stay)
    parser.add_argument("--triggered", type=float, default=Poisoning.triggered)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    first, end = map(int, chosen.rows.split(":"))
    source = ImageSource.open(chosen.data, rows=(first, end))
    seed = Seed(chosen.seed).child("backdoored guide")
    how = Poisoning(epochs=chosen.epochs, lr=chosen.lr, stay=chosen.stay, triggered=chosen.triggered)
    data = read_images(source, Preprocessing(size=common_size(source)))[0]
    train, held_out = split(data, how.held_out, seed.child("split"))
    guide, attack = ClipGuide("mini"), attack_named(chosen.attack, target=chosen.target)
    pack(poison(guide, train, attack, how, seed), guide.clip, chosen.folder)
    made = ClipGuide(f"local-dir:{chosen.folder}", templates=MINI_TEMPLATES)
    rates = {"before": measure(guide, held_out, attack), "after": measure(made, held_out, attack)}
    settings = {"attack": chosen.attack, "target": chosen.target, "rows": chosen.rows, "n": len(held_out)}
    print(json.dumps({**settings, **asdict(how), **rates}))


if __name__ == "__main__":
    main()
