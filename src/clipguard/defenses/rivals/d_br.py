"""D-BR: split by how far features move with the image, then unlearn one part and relearn the other."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn import functional as F

from clipguard.compute.device import array, tensor
from clipguard.compute.inference import features, planes
from clipguard.compute.recipes import Recipe
from clipguard.compute.training import LossFunction, cross_entropy, fit
from clipguard.defenses.budget import seconds_left
from clipguard.defenses.protocol import Case, Repaired
from clipguard.defenses.rivals.image_changes import rotated_and_shifted
from clipguard.defenses.rivals.schedule import (
    PUBLISHED_CROP,
    drawn,
    inference_seconds,
    portions,
    repeated,
    reporting,
    rows_of_passes,
    share_of_schedule,
    training_seconds,
)
from clipguard.models.features import head_of, inputs_of
from clipguard.models.spec import Normalized, build
from clipguard.pipeline.config import DefenseConfig
from clipguard.seeds import Seed
from clipguard.types import ImageSet, chunks

_PLAIN: Final = Recipe(epochs=1, lr=0.01, warmup=0.0, constant=True, crop=0.0, flip=False)
"""Batches of 128, SGD with momentum, no augmentation."""

_DEGREES: Final = 180.0
_SHIFT: Final = 0.2
"""Largest rotation, and largest shift as a share of the image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DistinguishAndRemove:
    """D-BR: Chen et al., "Effective Backdoor Defense by Exploiting Sensitivity of Poisoned Samples" (2022).

    A net from scratch learns the labels briefly; then the classes' mean features are driven apart, with
    no labels' loss. Samples whose features hardly change when the image is rotated and shifted are taken for
    clean, those that change most for poison. The victim unlearns the latter and relearns the former in turn.

    Published are all values, by the paper (NeurIPS 2022) and the authors' repository. Left open and chosen
    here: momentum is Nesterov's; the rate of the first net stays as it is, where the authors' hardly falls.
    The authors keep the epoch that does best on test data; this keeps the last.

    Attributes:
        budget: times clipguard's own seconds on the case; None runs the published schedule.
        config: clipguard's settings, for its seconds.
        label_passes: of the first net, with cross-entropy.
        centroid_passes: of the first net, with the similarity of class centroids.
        clean: share of the samples that are relearnt.
        poison: share of the samples that are unlearnt.
        rounds: of unlearning and relearning.
        published_samples: of the schedule; fewer have as many more rounds, since a round has fewer steps. 0
            leaves `rounds`.
        lr: rate of these rounds.
    """

    budget: float | None = None
    config: DefenseConfig = field(default_factory=DefenseConfig)
    label_passes: int = 2
    centroid_passes: int = 10
    clean: float = 0.2
    poison: float = 0.05
    rounds: int = 20
    published_samples: int = 50_000
    lr: float = 1e-4

    def defend(self, case: Case) -> Repaired:
        """Return the victim after unlearning and relearning."""
        seed, data = Seed(case.seed).child("d-br"), case.data
        first = build(case.spec, seed.child("init"))
        rounds = repeated(self.rounds, len(data), self.published_samples)
        share = share_of_schedule(
            seconds_left(case, self.config, self.budget, {}), lambda: self._published(first, data, rounds)
        )
        separating = self._separate(first, case, share)
        distance = inconsistency(first, data, seed.child("moves"))
        order = np.argsort(distance, kind="stable")
        clean = np.sort(order[: max(2, round(self.clean * len(data)))])
        poison = np.sort(order[len(data) - max(2, round(self.poison * len(data))) :])
        model = case.victim
        removing = self._remove(model, case, poison, clean, portions(rounds, share))
        return Repaired(
            model=model,
            seconds={"separation": separating, "removal": removing},
            notes={"schedule_share": share, "relearnt": len(clean), "unlearnt": len(poison)},
        )

    def _published(self, model: Normalized, data: ImageSet, rounds: int) -> float:
        passes = self.label_passes + self.centroid_passes + rounds * (self.clean + self.poison)
        a_pass = training_seconds(model, data, _PLAIN, Seed(0))
        return passes * a_pass + 2 * inference_seconds(model, data.images)

    def _separate(self, model: Normalized, case: Case, share: float) -> float:
        head, labels = head_of(model, planes(case.data.images[:1])), case.data.labels
        seconds = self._taught(model, case, "labels", self.label_passes, cross_entropy(labels), share)
        collecting: AbstractContextManager[list[Tensor]] = (
            nullcontext([]) if head is None else inputs_of(head)
        )
        with collecting as inputs:
            loss = centroid_loss(labels, inputs)
            return seconds + self._taught(model, case, "centroids", self.centroid_passes, loss, share)

    def _taught(
        self, model: Normalized, case: Case, phase: str, passes: int, loss: LossFunction, share: float
    ) -> float:
        seed, parts = Seed(case.seed).child("d-br", phase), portions(passes, share)
        rows, recipe = (
            rows_of_passes(np.arange(len(case.data)), parts, seed),
            replace(_PLAIN, epochs=len(parts)),
        )
        report = reporting(case, "D-BR: separate", len(parts))
        return fit(model, case.data.images, rows, loss, recipe, seed, report).seconds

    def _remove(
        self,
        model: Normalized,
        case: Case,
        poison: Int64[np.ndarray, "p"],
        clean: Int64[np.ndarray, "q"],
        parts: tuple[float, ...],
    ) -> float:
        data, seed = case.data, Seed(case.seed).child("d-br", "removal")

        def rows(epoch: int) -> Int64[np.ndarray, "m"]:
            # One optimiser for both: its momentum goes over from the one to the other.
            return drawn(clean if epoch % 2 else poison, parts[epoch // 2], seed.child("rows", epoch))

        flip = case.recipe.flip
        recipe = replace(_PLAIN, epochs=2 * len(parts), lr=self.lr, crop=PUBLISHED_CROP, flip=flip)
        report = reporting(case, "D-BR: unlearn and relearn", recipe.epochs)
        return fit(model, data.images, rows, opposed(data.labels, poison), recipe, seed, report).seconds


def opposed(labels: Int64[np.ndarray, "n"], poison: Int64[np.ndarray, "p"]) -> LossFunction:
    """Return cross-entropy, negative where the batch is of the poison: no batch is of both."""
    plain, climbed = cross_entropy(labels), tensor(np.isin(np.arange(len(labels)), poison))

    def loss(logits: Tensor, rows: Tensor, images: Tensor) -> Tensor:
        value = plain(logits, rows, images)
        return -value if bool(climbed[rows[0]]) else value

    return loss


def centroid_loss(labels: Int64[np.ndarray, "n"], inputs: list[Tensor]) -> LossFunction:
    """Return the similarity of class centroids of what the head was last given; of the logits without one.

    The authors call it the intra-class loss.

    Args:
        labels: of all samples.
        inputs: where `inputs_of` the head collects; it is emptied.
    """
    given = tensor(labels)

    def loss(logits: Tensor, rows: Tensor, _: Tensor) -> Tensor:
        values = inputs[-1].float() if inputs else logits
        inputs.clear()
        return centroid_similarity(values, given[rows].to(logits.device))

    return loss


def centroid_similarity(values: Float[Tensor, "b d"], labels: Tensor) -> Float[Tensor, ""]:
    """Return the mean of the matrix of cosines between a batch's class centroids, its diagonal zero."""
    # Anything but classes of the batch would be a centroid of nothing.
    classes, place = labels.unique(return_inverse=True)
    sums = F.one_hot(place, len(classes)).to(values.dtype).T @ values
    # A sum points where the mean does.
    directions = F.normalize(sums, dim=1)
    cosines = directions @ directions.T
    return (cosines.sum() - cosines.trace()) / len(classes) ** 2


def inconsistency(model: Normalized, data: ImageSet, seed: Seed) -> Float64[np.ndarray, "n"]:
    """Return how far each image's features move, squared, as a mean over features, when the image is moved.

    Each image is rotated by up to 180 degrees and shifted by up to a fifth.
    """
    generator, parts = seed.torch(), list[Float64[np.ndarray, "_"]]()
    for part in chunks(len(data)):
        images = data.images[part]
        moved = rotated_and_shifted(planes(images), _DEGREES, _SHIFT, generator).permute(0, 2, 3, 1)
        every = np.arange(len(images))
        plain, other = features(model, images, every), features(model, array(moved), every)
        parts.append(np.mean((plain.astype(np.float64) - other) ** 2, axis=1))
    return np.concatenate(parts)
