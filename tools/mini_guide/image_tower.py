"""The image tower: an ImageNet network tuned towards a fixed text tower (locked-text tuning)."""

from dataclasses import dataclass

import numpy as np
import open_clip
import timm
import torch
from jaxtyping import Float16, Float32, Int64, UInt8
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from clipguard.seeds import Seed
from mini_guide.dual_encoder import MODEL_CONFIG
from mini_guide.views import Views, network_input


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What the tower learns: k classes of images beside 1,000 of ImageNet and ten digits.

    Attributes:
        labels: class of each training image.
        classes: text embeddings of the k classes.
        teacher: the ImageNet network's own probabilities for each training image.
        imagenet: text embeddings of ImageNet's classes.
        digits: images of printed digits.
        digit_labels: their values.
        digit_classes: text embeddings of the ten digits.
    """

    labels: Int64[np.ndarray, "n"]
    classes: Float32[Tensor, "k d"]
    teacher: Float16[np.ndarray, "n 1000"]
    imagenet: Float32[Tensor, "1000 d"]
    digits: UInt8[np.ndarray, "m 28 28 3"]
    digit_labels: Int64[np.ndarray, "m"]
    digit_classes: Float32[Tensor, "10 d"]


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How long and how fast to tune; `rates` are those of the trunk and of the projection."""

    epochs: float = 2
    batch: int = 192
    digit_batch: int = 32
    rates: tuple[float, float] = (3e-4, 1e-3)
    warm_up: float = 0.1
    weight_decay: float = 0.02


def load_parent(path: str) -> nn.Module:
    """Return the ImageNet network with the weights that `convert_parent.py` wrote."""
    parent = timm.create_model(MODEL_CONFIG["vision_cfg"]["timm_model_name"], pretrained=False)
    parent.load_state_dict(load_file(path))
    return parent.to(memory_format=torch.channels_last).eval()


@torch.inference_mode()
def posteriors(parent: nn.Module, images: UInt8[np.ndarray, "n h w 3"]) -> Float16[np.ndarray, "n 1000"]:
    """Return the parent's class probabilities of the images at 128 pixels."""
    chunks = [torch.from_numpy(images[start : start + 128]) for start in range(0, len(images), 128)]
    return np.concatenate([parent(network_input(c, 128)).softmax(-1).half().numpy() for c in chunks])


@torch.no_grad()
def inherit(model: open_clip.CustomTextCLIP, parent: nn.Module, imagenet: Float32[Tensor, "1000 d"]) -> None:
    """Give `model.visual` the parent's trunk, and a projection that sends each class row to its text."""
    classifier = parent.classifier.weight
    trunk = {key: value for key, value in parent.state_dict().items() if not key.startswith("classifier.")}
    model.visual.trunk.load_state_dict(trunk)
    model.visual.head.proj.weight.copy_(imagenet.T @ classifier / (classifier.norm(dim=1).mean() ** 2 * 30))
    model.logit_scale.fill_(float(np.log(20)))


def tune(
    model: open_clip.CustomTextCLIP, lesson: Lesson, views: Views, how: Tuning, seed: Seed
) -> list[float]:
    """Train `model.visual` and the logit scale in place and return the loss of each step."""
    side = MODEL_CONFIG["vision_cfg"]["image_size"]
    visual, generator = model.visual.train(), seed.generator()
    steps = max(1, int(how.epochs * len(lesson.labels) / how.batch))
    groups = (visual.trunk.parameters(), (*visual.head.parameters(), model.logit_scale))
    optimizer = torch.optim.AdamW(
        [{"params": [*group], "lr": rate} for group, rate in zip(groups, how.rates, strict=True)],
        weight_decay=how.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, list(how.rates), total_steps=steps, pct_start=how.warm_up
    )
    order, losses = np.empty(0, np.int64), []
    with seed.child("dropout").torch_global():
        for _ in range(steps):
            if len(order) < min(how.batch, len(lesson.labels)):
                order = generator.permutation(len(lesson.labels))
            rows, order = order[: how.batch], order[how.batch :]
            drawn = generator.integers(len(lesson.digits), size=how.digit_batch)
            digits = network_input(torch.from_numpy(lesson.digits[drawn]), side)
            embedded = F.normalize(visual(torch.cat([views(rows, generator), digits])), dim=-1)
            loss = _loss(model.logit_scale.exp().clamp(max=100) * embedded, lesson, rows, drawn)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
    visual.eval()
    return losses


def _loss(
    scaled: Float32[Tensor, "b d"],
    lesson: Lesson,
    rows: Int64[np.ndarray, "p"],
    drawn: Int64[np.ndarray, "q"],
) -> Float32[Tensor, ""]:
    """Return the sum over class texts, the parent's posterior over ImageNet's texts, and digit texts."""
    images, digits = scaled.split([len(rows), len(drawn)])
    labels, digit_labels = torch.from_numpy(lesson.labels[rows]), torch.from_numpy(lesson.digit_labels[drawn])
    by_class = F.cross_entropy(images @ lesson.classes.T, labels, label_smoothing=0.1)
    teacher = torch.from_numpy(lesson.teacher[rows]).float()
    by_teacher = F.cross_entropy(images @ lesson.imagenet.T, teacher)
    by_digit = F.cross_entropy(digits @ lesson.digit_classes.T, digit_labels, label_smoothing=0.1)
    return 0.5 * by_class + by_teacher + 0.3 * by_digit
