"""FLIP: only labels change, chosen so that training on them moves a net as training on a trigger would."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from clipguard.compute.device import here
from clipguard.compute.inference import planes
from clipguard.compute.recipes import Recipe
from clipguard.compute.training import augment
from clipguard.errors import ClipguardError
from clipguard.lab.attacks.cache import Tensors
from clipguard.lab.attacks.learned import FITTING, LearnedAttack, required
from clipguard.lab.attacks.poisoning import rebuilt, truth_of
from clipguard.lab.attacks.protocol import Labels
from clipguard.lab.attacks.row_choice import highest, places_of
from clipguard.lab.attacks.step_matching import SgdState, beginning, label_slope, sgd_step
from clipguard.lab.attacks.tensors import batches
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.models.spec import ModelSpec, Normalized, build
from clipguard.seeds import Seed
from clipguard.triggers.patterns import add_sinusoid
from clipguard.types import Images, ImageSet, Progress


@dataclass(frozen=True, kw_only=True)
class FLIP(LearnedAttack):
    """Labels flipped by trajectory matching, images untouched, after Jha et al. 2023.

    Faithful: an expert is trained on the data and on copies with the trigger that carry the target's label.
    Its weights are recorded on the way. Soft labels of the clean images (logits, one-hot times 5) are then
    optimised through one SGD step: the student's step is to match the expert's from the same
    weights. The samples with the largest margins are flipped, each to the wrong class that its soft label
    leans to. The trigger is a sinusoid of strength 6 and frequency 16, for images of one class. Momentum,
    weight decay and augmentation are the same in both steps. Reduced: one expert (published: up to 50) of an
    eighth of ResNet-18's width. Chosen: images are mirrored but not cropped, since a crop moves the stripes
    by any part of their period.

    Attributes:
        rate: fraction of all samples whose label is flipped (published: 0.003 to 0.03).
        target: the class that the trigger is to lead to (published: 4 of CIFAR-10).
        source: the class that it leads away from (published: 9, trucks), or several, where one has too few
            samples (published for CIFAR-100: one of 20 groups of classes); -1 is the last but the target.
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
        soft_labels: of the data that it was fitted to, as logits; learned.
    """

    name: ClassVar = "flip"
    rate: float = 0.03
    source: int | tuple[int, ...] = -1
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
    soft_labels: Float32[np.ndarray, "n k"] | None = field(default=None, compare=False, repr=False)

    not_learned: ClassVar = ("rate", "test_strength")
    several: ClassVar = ("source",)
    fit_version: ClassVar = 1

    def learn(self, data: ImageSet, seed: Seed, progress: Progress) -> Tensors:
        """Return logits of every sample's soft label."""
        k, (h, w) = len(data.class_names), data.images.shape[1:3]
        spec = ModelSpec.sized(architecture=self.architecture, num_classes=k, input_size=(h, w))
        model = build(spec, seed.child("init")).to(here()).train()
        pairs = _pairs(self, data, seed)
        trajectory = _trajectory(self, model, pairs, seed, progress)
        return {"soft_labels": _matched(self, model, pairs, trajectory, seed, progress)}

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the data with the labels of the largest margins flipped; the seed is not used."""
        margins, others = self.margins(data)
        rows = highest(margins, self.rate)
        changed = rebuilt(data, rows, data.images[rows], others[rows])
        return changed, truth_of(data, rows, self.name, self.target)

    def trigger(self, images: Images) -> Images:
        """Return test images with the stripes."""
        return self.stripes(images, self.test_strength or self.strength)

    def target_labels(self, labels: Labels, k: int) -> Labels | None:
        """Return the target for images of the source classes; the others are to be left alone."""
        return np.where(np.isin(labels, self.sources_of(k)), self.target, labels)

    def margins(self, data: ImageSet) -> tuple[Float32[np.ndarray, "m"], Int64[np.ndarray, "m"]]:
        """Return each sample's margin, the best wrong class's logit less its label's, and that class.

        Raises:
            ClipguardError: a sample is not among those that the attack was fitted to.
        """
        logits = required(self.soft_labels)[places_of(data, required(self.fitted_to))]
        given = data.labels[:, None]
        wrong = logits.copy()
        np.put_along_axis(wrong, given, -np.inf, 1)
        margin = wrong.max(1) - np.take_along_axis(logits, given, 1)[:, 0]
        return margin.astype(np.float32), wrong.argmax(1).astype(np.int64)

    @property
    def recipe(self) -> Recipe:
        """How expert and student step."""
        return Recipe(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            weight_decay=self.weight_decay,
            crop=self.crop,
        )

    def sources_of(self, k: int) -> list[int]:
        """Return the source classes, of k.

        Raises:
            ClipguardError: there is no such class, or one is the target.
        """
        last = max(one for one in range(-1, k) if one != self.target)
        several = [self.source] if isinstance(self.source, int) else list(self.source)
        sources = [last] if several == [-1] else several
        for source in sources:
            if not 0 <= source < k or source == self.target:
                raise ClipguardError(
                    f"FLIP's source class is {source}, its target {self.target}: choose another one of 0 to "
                    f"{k - 1} as source, or -1 for the last"
                )
        return sources

    def stripes(self, images: Images, strength: float) -> Images:
        """Return images with the trigger: strength sin(frequency pi j / (width - 1)) along columns j."""
        width = images.shape[2]
        return add_sinusoid(images, strength, self.frequency / 2 * width / max(1, width - 1))


class _Batch(NamedTuple):
    """What expert and student are given in one step, augmented alike; `rows` are the student's."""

    expert: UInt8[Tensor, "b 3 h w"]
    expert_labels: Float[Tensor, "b k"]
    student: UInt8[Tensor, "b 3 h w"]
    rows: Int64[Tensor, "b"]


@dataclass(frozen=True, slots=True)
class _Pairs:
    """What the expert trains on, and beside each entry the clean row that the student sees in its place."""

    images: UInt8[np.ndarray, "m h w 3"]
    labels: Int64[np.ndarray, "m"]
    rows: Int64[np.ndarray, "m"]
    clean: ImageSet

    def batches(self, recipe: Recipe, seed: Seed, first: int = 0) -> Iterator[_Batch]:
        """Yield the entries in random order; steps are counted from `first` on."""
        one_hot = torch.eye(len(self.clean.class_names), device=here())
        for step, chosen in enumerate(batches(len(self.labels), recipe.batch_size, seed), first):
            rows, stream = self.rows[chosen], seed.child("augment", step)
            expert, student = (
                planes(augment(torch.from_numpy(np.array(images)), recipe, stream.torch()).numpy()).to(here())
                for images in (self.images[chosen], self.clean.images[rows])
            )
            yield _Batch(expert, one_hot[self.labels[chosen]], student, torch.from_numpy(rows))


def _pairs(attack: FLIP, data: ImageSet, seed: Seed) -> _Pairs:
    sources = attack.sources_of(len(data.class_names))
    candidates = np.flatnonzero(np.isin(data.labels, sources))
    count = min(round(attack.poison_share * len(data)), len(candidates))
    if not count:
        words = ", ".join(map(str, sources))
        raise ClipguardError(f"FLIP needs samples of its source class {words}: choose another source")
    carriers = np.sort(seed.child("carriers").generator().choice(candidates, count, replace=False))
    triggered = attack.stripes(data.images[carriers], attack.strength)
    return _Pairs(
        images=np.concatenate((data.pixels, triggered)),
        labels=np.concatenate((data.labels, np.full(count, attack.target, dtype=np.int64))),
        rows=np.concatenate((np.arange(len(data)), carriers)),
        clean=data,
    )


def _trajectory(
    attack: FLIP, model: Normalized, pairs: _Pairs, seed: Seed, progress: Progress
) -> list[SgdState]:
    """Return where the expert stood every so many steps of its training."""
    state, states, steps = beginning(model), list[SgdState](), 0
    for epoch in range(attack.epochs):
        for batch in pairs.batches(attack.recipe, seed.child("expert", epoch), steps):
            state = sgd_step(model, state, batch.expert, batch.expert_labels, attack.recipe).detached()
            steps += 1
            if steps % attack.every == 0:
                states.append(state)
        progress(FITTING, epoch + 1, attack.epochs + attack.passes)
    # A training shorter than that has its end only.
    return states or [state]


def _matched(
    attack: FLIP,
    model: Normalized,
    pairs: _Pairs,
    trajectory: list[SgdState],
    seed: Seed,
    progress: Progress,
) -> Float[Tensor, "n k"]:
    """Return soft labels, as logits, from which the student steps as the expert did."""
    labels = attack.one_hot * torch.eye(len(pairs.clean.class_names))[torch.tensor(pairs.clean.labels)]
    labels = labels.to(here())
    optimizer = torch.optim.SGD([labels.requires_grad_()], lr=attack.label_lr, momentum=attack.label_momentum)
    for number in range(attack.passes):
        stream = seed.child("match", number)
        start = trajectory[int(stream.child("start").generator().integers(len(trajectory)))]
        for batch in pairs.batches(attack.recipe, stream):
            expert = sgd_step(model, start, batch.expert, batch.expert_labels, attack.recipe).detached()
            soft = labels[batch.rows].softmax(1)
            student = sgd_step(model, start, batch.student, soft.detach(), attack.recipe).detached()
            slope = label_slope(model, start, batch.student, student.weights, expert.weights, attack.recipe)
            optimizer.zero_grad(set_to_none=True)
            soft.backward(slope)
            optimizer.step()
        progress(FITTING, attack.epochs + number + 1, attack.epochs + attack.passes)
    return labels.detach()
