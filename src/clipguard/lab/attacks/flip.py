"""FLIP: only labels change, chosen so that training on them moves a net as training on a trigger would."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from clipguard.compute.training import Recipe, augment
from clipguard.errors import ClipguardError
from clipguard.lab.attacks.cache import Tensors, cached, key_of
from clipguard.lab.attacks.differentiable_sgd import SgdState, beginning, matching_loss, sgd_step
from clipguard.lab.attacks.poisoning import rebuilt, truth_of
from clipguard.lab.attacks.protocol import FITTING, Labels, check_target, required
from clipguard.lab.attacks.row_choice import highest, places_of
from clipguard.lab.attacks.targeted import TargetedAttack
from clipguard.lab.attacks.tensors import batches
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.models.spec import ModelSpec, Normalized, build
from clipguard.seeds import Seed
from clipguard.triggers.patterns import add_sinusoid
from clipguard.types import Images, ImageSet, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftLabels:
    """What the matching learned.

    Attributes:
        ids: of the samples that the attack was fitted to.
        labels: theirs.
        logits: of their soft labels, one row a sample.
    """

    ids: tuple[str, ...]
    labels: Int64[np.ndarray, "n"]
    logits: Float32[np.ndarray, "n k"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FLIP(TargetedAttack):
    """Labels flipped by trajectory matching, images untouched, after Jha et al. 2023.

    Faithful: an expert is trained on the data and on copies with the trigger that carry the target's label.
    Its weights are recorded on the way. Soft labels of the clean images (logits, one-hot times 5) are then
    optimised through one differentiable SGD step: the student's step is to match the expert's from the same
    weights. The samples with the largest margins are flipped, each to the wrong class that its soft label
    leans to. The trigger is a sinusoid of strength 6 and frequency 16, for images of one class. Momentum,
    weight decay and augmentation are the same in both steps. Reduced: one expert (published: up to 50) of an
    eighth of ResNet-18's width. Chosen: images are mirrored but not cropped, since a crop moves the stripes
    by any part of their period.

    Attributes:
        rate: fraction of all samples whose label is flipped (published: 0.003 to 0.03).
        target: the class that the trigger is to lead to (published: 4 of CIFAR-10).
        source: the class that it leads away from (published: 9, trucks); -1 is the last but the target.
        epochs: of the expert (published: 20 of 50,000 images; fewer images make fewer steps).
        passes: the budget of the matching, over the expert's data (published: 15).
        architecture: of expert and student, as in `ModelSpec`.
        batch_size: images a step, of expert and student.
        lr: of both.
        weight_decay: of both.
        crop: of both, as in `Recipe`.
        poison_share: samples with the trigger that the expert sees, as a fraction of the data, at most all of
            the source class.
        every: steps between two recorded weights.
        one_hot: initial logit of the given label.
        label_lr: of the labels' SGD.
        label_momentum: of the labels' SGD.
        strength: of the stripes that the expert learns, in grey levels.
        test_strength: of those on test images; 0, as published: the same.
        frequency: half periods of the stripes per image width.
        soft_labels: of every sample of the data; learned.
    """

    name: ClassVar = "flip"
    rate: float = 0.03
    source: int = -1
    epochs: int = 40
    passes: int = 10
    architecture: str = "preactresnet18-8"
    batch_size: int = 256
    lr: float = 0.1
    weight_decay: float = 2e-4
    crop: float = 0.0
    poison_share: float = 0.1
    every: int = 50
    one_hot: float = 5.0
    label_lr: float = 150.0
    label_momentum: float = 0.5
    strength: float = 6.0
    frequency: float = 16.0
    test_strength: float = 0.0
    soft_labels: SoftLabels | None = field(default=None, compare=False, repr=False)

    def fit(self, data: ImageSet, seed: Seed, cache: Path | None, progress: Progress) -> "FLIP":
        """Return the attack with a soft label for every sample of `data`.

        Raises:
            ClipguardError: target or source is no class of `data`, both are one, or the training diverged.
        """
        check_target(self.target, data)
        self.source_of(len(data.class_names))
        key = key_of(self, data, seed, ("rate", "test_strength"))
        tensors = cached(key, cache, lambda: _soft_labels(self, data, seed, progress))
        logits = tensors["soft_labels"].numpy()
        return replace(self, soft_labels=SoftLabels(ids=data.ids, labels=data.labels, logits=logits))

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the data with the labels of the largest margins flipped; the seed is not used.

        Raises:
            ClipguardError: the attack was fitted to other data, or to none.
        """
        margins, others = self.margins(data)
        rows = highest(margins, self.rate)
        changed = rebuilt(data, rows, data.images[rows], others[rows])
        return changed, truth_of(data, rows, self.name, self.target)

    def trigger(self, images: Images) -> Images:
        """Return test images with the stripes."""
        return self.stripes(images, self.test_strength or self.strength)

    def target_labels(self, labels: Labels, k: int) -> Labels | None:
        """Return the target for images of the source class; the others are to be left alone."""
        return np.where(labels == self.source_of(k), self.target, labels)

    def margins(self, data: ImageSet) -> tuple[Float32[np.ndarray, "m"], Int64[np.ndarray, "m"]]:
        """Return each sample's margin, the best wrong class's logit less its label's, and that class.

        Raises:
            ClipguardError: a sample is not among those that the attack was fitted to.
        """
        soft_labels = required(self.soft_labels)
        logits = soft_labels.logits[places_of(data, soft_labels.ids, soft_labels.labels)]
        given = data.labels[:, None]
        wrong = logits.copy()
        np.put_along_axis(wrong, given, -np.inf, 1)
        margin = wrong.max(1) - np.take_along_axis(logits, given, 1)[:, 0]
        return margin.astype(np.float32), wrong.argmax(1).astype(np.int64)

    @property
    def steps(self) -> Recipe:
        """How expert and student step."""
        return Recipe(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            weight_decay=self.weight_decay,
            crop=self.crop,
        )

    def source_of(self, k: int) -> int:
        """Return the source class, of k.

        Raises:
            ClipguardError: there is no such class, or it is the target.
        """
        source = max(one for one in range(-1, k) if one != self.target) if self.source == -1 else self.source
        if not 0 <= source < k or source == self.target:
            raise ClipguardError(
                f"FLIP's source class is {self.source}, its target {self.target}: choose another one of 0 to "
                f"{k - 1} as source, or -1 for the last"
            )
        return source

    def stripes(self, images: Images, strength: float) -> Images:
        """Return images with the trigger: strength sin(frequency pi j / (width - 1)) along columns j."""
        width = images.shape[2]
        return add_sinusoid(images, strength, self.frequency / 2 * width / max(1, width - 1))


@dataclass(frozen=True, slots=True)
class _Pairs:
    """What the expert trains on, and beside each entry the clean row that the student sees in its place."""

    images: UInt8[np.ndarray, "m h w 3"]
    labels: Int64[np.ndarray, "m"]
    rows: Int64[np.ndarray, "m"]
    clean: UInt8[np.ndarray, "n h w 3"]
    classes: int

    def expert_labels(self, chosen: Int64[np.ndarray, "b"]) -> Float[Tensor, "b k"]:
        """Return the expert's labels, one-hot."""
        return torch.eye(self.classes)[torch.from_numpy(self.labels[chosen])]

    def batch(self, chosen: Int64[np.ndarray, "b"], recipe: Recipe, seed: Seed) -> tuple[Tensor, Tensor]:
        """Return the expert's and the student's images, cropped and mirrored alike."""
        both = (self.images[chosen], self.clean[self.rows[chosen]])
        expert, student = (
            augment(torch.from_numpy(np.array(images)), recipe, seed.torch()).permute(0, 3, 1, 2)
            for images in both
        )
        return expert, student


def _pairs(attack: FLIP, data: ImageSet, seed: Seed) -> _Pairs:
    source = attack.source_of(len(data.class_names))
    candidates = np.flatnonzero(data.labels == source)
    count = min(round(attack.poison_share * len(data)), len(candidates))
    if not count:
        raise ClipguardError(f"FLIP needs samples of its source class {source}: choose another source")
    carriers = np.sort(seed.child("carriers").numpy().choice(candidates, count, replace=False))
    triggered = attack.stripes(data.images[carriers], attack.strength)
    return _Pairs(
        images=np.concatenate((data.images, triggered)),
        labels=np.concatenate((data.labels, np.full(count, attack.target, dtype=np.int64))),
        rows=np.concatenate((np.arange(len(data)), carriers)),
        clean=np.asarray(data.images),
        classes=len(data.class_names),
    )


def _trajectory(
    attack: FLIP, model: Normalized, pairs: _Pairs, seed: Seed, progress: Progress
) -> list[SgdState]:
    """Return where the expert stood every so many steps of its training."""
    state = beginning(model)
    states: list[SgdState] = []
    steps = 0
    for epoch in range(attack.epochs):
        stream = seed.child("expert", epoch)
        for chosen in batches(len(pairs.labels), attack.batch_size, stream):
            x, _ = pairs.batch(chosen, attack.steps, stream.child("augment", steps))
            state = sgd_step(model, state, x.to(model.mean.device), pairs.expert_labels(chosen), attack.steps)
            state = state.detached()
            steps += 1
            if steps % attack.every == 0:
                states.append(state)
        progress(FITTING, epoch + 1, attack.epochs + attack.passes)
    # A training shorter than that has its end only.
    return states or [state]


def _soft_labels(attack: FLIP, data: ImageSet, seed: Seed, progress: Progress) -> Tensors:
    """Return logits of every sample's soft label."""
    k, (h, w) = len(data.class_names), data.images.shape[1:3]
    spec = ModelSpec(architecture=attack.architecture, num_classes=k, input_size=(h, w))
    model = build(spec, seed.child("init")).train()
    pairs = _pairs(attack, data, seed)
    trajectory = _trajectory(attack, model, pairs, seed, progress)
    labels = (attack.one_hot * torch.eye(k)[torch.tensor(data.labels)]).to(model.mean.device)
    optimizer = torch.optim.SGD([labels.requires_grad_()], lr=attack.label_lr, momentum=attack.label_momentum)
    for number in range(attack.passes):
        stream = seed.child("match", number)
        start = trajectory[int(stream.child("start").numpy().integers(len(trajectory)))]
        for step, chosen in enumerate(batches(len(pairs.labels), attack.batch_size, stream)):
            x = pairs.batch(chosen, attack.steps, stream.child("augment", step))
            clean_rows = torch.from_numpy(pairs.rows[chosen])
            expert_x, student_x = (images.to(model.mean.device) for images in x)
            expert = sgd_step(model, start, expert_x, pairs.expert_labels(chosen), attack.steps).detached()
            student = sgd_step(model, start, student_x, labels[clean_rows].softmax(1), attack.steps)
            loss = matching_loss(start.weights, student.weights, expert.weights)
            optimizer.zero_grad(set_to_none=True)
            (labels.grad,) = torch.autograd.grad(loss, [labels])
            optimizer.step()
        progress(FITTING, attack.epochs + number + 1, attack.epochs + attack.passes)
    return {"soft_labels": labels.detach()}
