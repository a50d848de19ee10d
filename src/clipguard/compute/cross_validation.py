"""Short seeded trainings whose product is logits, no classifier: suspicious model and trigger detector."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64

from clipguard.compute.inference import classifier_logits
from clipguard.compute.training import EpochHook, LossFunction, Recipe, fit
from clipguard.models.spec import ModelSpec, Normalized, build
from clipguard.seeds import Seed
from clipguard.types import Images


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallNetConfig:
    """How a probe is trained and how its logits are taken.

    Attributes:
        architecture: as in `ModelSpec`.
        recipe: a short training.
        runs: independent trainings whose logits are averaged.
        folds: 1 scores samples by a net that was trained on them; f >= 2 trains f nets, each on all folds but
            one, and scores every sample by the net that has not seen it.
        fewest_steps: a small data set gets more epochs, until a net has taken this many steps: fewer do not
            show a trigger, whatever the number of passes.
    """

    architecture: str = "preactresnet18-16"
    recipe: Recipe
    runs: int = 1
    folds: int = 1
    fewest_steps: int = 0

    def epochs(self, trainable: int) -> int:
        """Return the epochs that each net takes, for a number of trainable samples."""
        seen = trainable if self.folds == 1 else trainable * (self.folds - 1) // self.folds
        steps = max(1, math.ceil(seen / self.recipe.batch_size))
        return max(self.recipe.epochs, math.ceil(self.fewest_steps / steps))


def _folds(
    trainable: Bool[np.ndarray, "n"], folds: int, seed: Seed
) -> Iterator[tuple[Int64[np.ndarray, "a"], Bool[np.ndarray, "n"]]]:
    """Yield (rows to train on, mask of the rows to score) for each fold."""
    n = len(trainable)
    if folds == 1:
        yield np.flatnonzero(trainable), np.ones(n, dtype=bool)
        return
    fold = seed.child("folds").numpy().permutation(np.arange(n) % folds)
    for number in range(folds):
        yield np.flatnonzero(trainable & (fold != number)), fold == number


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedNets:
    """What a probe leaves behind.

    Attributes:
        logits: for every sample, averaged over runs.
        nets: one a run and fold, in that order.
    """

    logits: Float32[np.ndarray, "n k"]
    nets: tuple[Normalized, ...]


def train_small_nets(  # noqa: PLR0913  # the kernel's arguments, passed on: no two belong together
    probe: SmallNetConfig,
    images: Images,
    outputs: int,
    loss: LossFunction,
    trainable: Bool[np.ndarray, "n"],
    seed: Seed,
    on_epoch: EpochHook | None = None,
    start: tuple[Normalized, ...] = (),
) -> TrainedNets:
    """Return logits [n, outputs] for all images, and the nets that were trained on the trainable ones only.

    With the nets of another training of this probe as `start`, under the same seed, each goes on from there
    with the same fold left out; the nets given stay as they are.
    """
    h, w = images.shape[1:3]
    spec = ModelSpec(architecture=probe.architecture, num_classes=outputs, input_size=(h, w))
    recipe = replace(probe.recipe, epochs=probe.epochs(int(trainable.sum())))
    total = np.zeros((len(images), outputs), dtype=np.float32)
    nets: list[Normalized] = []
    for run in range(probe.runs):
        stream = seed.child("run", run)
        for number, (rows, scored) in enumerate(_folds(trainable, probe.folds, stream)):
            part = stream.child("fold", number)
            model = copy.deepcopy(start[len(nets)]) if start else build(spec, part.child("init"))
            fit(model, images, rows, loss, recipe, part.child("refit" if start else "fit"), on_epoch)
            total[scored] += classifier_logits(model, images[scored])
            nets.append(model)
    return TrainedNets(logits=total / np.float32(probe.runs), nets=tuple(nets))


def binary_loss(positive: Bool[np.ndarray, "n"], weights: Float64[np.ndarray, "n"]) -> LossFunction:
    """Return the mean over a batch of the weighted logistic loss of one logit against `positive`."""
    wanted = torch.from_numpy(positive.astype(np.float32))
    weight = torch.from_numpy(weights.astype(np.float32))

    def loss(logits: torch.Tensor, rows: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(
            logits[:, 0], wanted[rows].to(logits.device), weight=weight[rows].to(logits.device)
        )

    return loss
