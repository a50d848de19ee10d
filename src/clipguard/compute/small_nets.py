"""Small nets, trained for seconds, whose product is logits: early-training model and trigger detector."""

import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64

from clipguard.compute.cross_validation import Groups, fold_numbers
from clipguard.compute.inference import classifier_logits
from clipguard.compute.lanes import in_lanes, in_turn
from clipguard.compute.recipes import SmallNetConfig
from clipguard.compute.training import EpochHook, LossFunction, fit
from clipguard.models.spec import ModelSpec, Normalized, build
from clipguard.seeds import Seed
from clipguard.types import Rows, chunks

_SCORED: Final = 2000
"""Images that are read together to be scored: whole batches of `classifier_logits`, on a GPU, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetLogits:
    """Logits [n, k] of small nets, averaged over runs, as `Rows`: computed when asked for.

    Attributes:
        nets: one a run and fold, in that order.
        fold: of each sample in each run; it is scored by the net of that fold.
        images: what is scored.
        outputs: k.
    """

    nets: tuple[Normalized, ...]
    fold: Int64[np.ndarray, "runs n"]
    images: Rows
    outputs: int

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of images and of outputs."""
        return len(self), self.outputs

    def __len__(self) -> int:
        """Return n."""
        return len(self.images)

    def __getitem__(self, rows: Any, /) -> Float32[np.ndarray, "m k"]:
        """Return the logits of a slice of the images, or of an array of row numbers."""
        index = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows
        total = np.zeros((len(index), self.outputs), dtype=np.float32)
        runs = len(self.fold)
        for number, net in enumerate(self.nets):
            run, fold = divmod(number, len(self.nets) // runs)
            places = np.flatnonzero(self.fold[run, index] == fold)
            for part in chunks(len(places), _SCORED):
                some = places[part]
                total[some] += classifier_logits(net, self.images[index[some]])
        return total / np.float32(runs)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedNets:
    """What small nets leave behind.

    Attributes:
        logits: of every sample, averaged over runs, computed when asked for.
        nets: one a run and fold, in that order.
        earlier: the same logits of the nets as they were after each of the epochs that were asked for.
    """

    logits: NetLogits
    nets: tuple[Normalized, ...]
    earlier: tuple[NetLogits, ...]


def train_small_nets(  # noqa: PLR0913  # the kernel's arguments, passed on: no two belong together
    config: SmallNetConfig,
    images: Rows,
    outputs: int,
    loss: LossFunction,
    trainable: Bool[np.ndarray, "n"],
    seed: Seed,
    on_epoch: EpochHook | None = None,
    start: tuple[Normalized, ...] = (),
    keep_at: tuple[int, ...] = (),
    groups: Groups | None = None,
) -> TrainedNets:
    """Return the nets that were trained on the trainable images only, and their logits [n, outputs] of all.

    With the nets of another training of this kind as `start`, under the same seed, each goes on from there
    with the same fold left out; the nets given stay as they are. Logits of the nets as they were after
    `keep_at` epochs are kept as well. Folds tear no group of samples apart.
    """
    h, w = images.shape[1:3]
    spec = ModelSpec.sized(architecture=config.architecture, num_classes=outputs, input_size=(h, w))
    recipe = config.recipe(int(trainable.sum()))
    streams = [seed.child("run", run) for run in range(config.runs)]
    fold = np.stack([_folds(len(images), config.folds, stream, groups) for stream in streams])

    hook, kept = on_epoch and in_turn(on_epoch), dict[tuple[int, int], Normalized]()

    def train(run: int, number: int) -> Normalized:
        rows = np.flatnonzero(trainable & (fold[run] != number) if config.folds > 1 else trainable)
        part, place = streams[run].child("fold", number), run * config.folds + number
        model = copy.deepcopy(start[place]) if start else build(spec, part.child("init"))

        def after(epoch: int) -> None:
            if epoch in keep_at:
                kept[epoch, place] = copy.deepcopy(model).eval()
            if hook is not None:
                hook(epoch)

        stream = part.child("refit" if start else "fit")
        fit(model, images, rows, loss, recipe, stream, after, exact=True)
        return model

    tasks = [partial(train, run, number) for run in range(config.runs) for number in range(config.folds)]
    nets = tuple(in_lanes(tasks))
    earlier = [tuple(kept[epoch, place] for place in range(len(nets))) for epoch in keep_at]
    logits, *then = (
        NetLogits(nets=some, fold=fold, images=images, outputs=outputs) for some in (nets, *earlier)
    )
    return TrainedNets(logits=logits, nets=nets, earlier=tuple(then))


def continued(config: SmallNetConfig, epochs: int) -> SmallNetConfig:
    """Return how nets go on for some more epochs: at half the learning rate."""
    return replace(config, epochs=epochs, lr=config.lr / 2, fewest_steps=0)


def _folds(n: int, folds: int, stream: Seed, groups: Groups | None) -> Int64[np.ndarray, "n"]:
    if folds == 1:
        return np.zeros(n, dtype=np.int64)
    return fold_numbers(n, folds, stream.child("folds").generator(), groups)


def binary_loss(positive: Bool[np.ndarray, "n"], weights: Float64[np.ndarray, "n"]) -> LossFunction:
    """Return the mean over a batch of the weighted logistic loss of one logit against `positive`."""
    target = torch.from_numpy(positive.astype(np.float32))
    weight = torch.from_numpy(weights.astype(np.float32))

    def loss(logits: torch.Tensor, rows: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(
            logits[:, 0], target[rows].to(logits.device), weight=weight[rows].to(logits.device)
        )

    return loss
