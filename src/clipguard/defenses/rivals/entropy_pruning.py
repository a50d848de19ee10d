"""EP: prune the channels whose activations follow a distribution of low entropy."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64
from torch import nn

from clipguard.compute.device import array, tensor
from clipguard.compute.inference import classifier_logits
from clipguard.defenses.protocol import Case, Repaired
from clipguard.errors import ClipguardError
from clipguard.models.spec import Normalized
from clipguard.seeds import Seed
from clipguard.types import Images

_BIN: Final = 0.01
"""Width of the histogram's bins, in deviations of a channel."""

# Private in torch, and yet the one class that all of its normalisations over a batch have in common.
_BatchNorm = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyPruning:
    """EP: Zheng et al., "Pre-activation Distributions Expose Backdoor Neurons" (NeurIPS 2022).

    Of each channel of each BatchNorm layer, it takes the largest input over an image's positions, and the
    entropy of these values over a batch. Channels whose entropy lies far below that of their layer's others
    are pruned: their scale becomes 0.

    Published are all values. Left open and chosen here: a channel that gives every image the same value has
    no distribution, and takes no part. One batch cannot be cut, so that it has no budget.

    Attributes:
        samples: size of the batch, drawn from the data at random.
        deviations: how many standard deviations below its layer's mean a pruned channel's entropy lies.
    """

    samples: int = 500
    deviations: float = 3.0

    def defend(self, case: Case) -> Repaired:
        """Return the victim with some channels pruned.

        Raises:
            ClipguardError: the victim has no BatchNorm layer.
        """
        model, began = case.victim, time.monotonic()
        draw = Seed(case.seed).child("ep").generator()
        rows = np.sort(draw.permutation(len(case.data))[: self.samples])
        pruned = prune(model, case.data.images[rows], self.deviations)
        seconds = time.monotonic() - began
        return Repaired(
            model=model, seconds={"pruning": seconds}, notes={"schedule_share": 1.0, "pruned": pruned}
        )


def prune(model: Normalized, images: Images, deviations: float) -> int:
    """Set the scale of channels of low entropy to 0, in place, and return how many there are."""
    with largest_inputs(model) as largest:
        classifier_logits(model, images)
    if not largest:
        raise ClipguardError("EP prunes channels of BatchNorm layers, and the victim has none: give another")
    count = 0
    for layer, batches in largest.items():
        low = outliers(entropies(np.concatenate(batches)), deviations)
        layer.weight.data[tensor(np.flatnonzero(low)).to(layer.weight.device)] = 0
        count += int(low.sum())
    return count


@contextmanager
def largest_inputs(model: Normalized) -> Iterator[dict[Any, list[Float32[np.ndarray, "b c"]]]]:
    """Give each BatchNorm layer's largest input over positions, channel by channel, of what runs inside."""
    largest = dict[Any, list[Float32[np.ndarray, "b c"]]]()

    def note(layer: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        values = given[0].float()
        largest.setdefault(layer, []).append(array(values.flatten(2).amax(2) if values.ndim > 2 else values))

    with ExitStack() as hooks:
        for layer in model.modules():
            if isinstance(layer, _BatchNorm) and layer.weight is not None:
                hooks.callback(layer.register_forward_pre_hook(note).remove)
        yield largest


def entropies(values: Float32[np.ndarray, "n c"]) -> Float64[np.ndarray, "c"]:
    """Return the entropy of each channel's standardised values, in nats; NaN for a constant channel.

    The values fall into bins of width 0.01, which begin at the least standardised value of the layer.
    """
    exact = values.astype(np.float64)
    deviation = exact.std(0)
    varied = deviation > 1e-6 * np.abs(exact).max(0)
    result = np.full(len(deviation), np.nan)
    if not varied.any():
        return result
    standard = (exact[:, varied] - exact[:, varied].mean(0)) / deviation[varied]
    bins = np.floor((standard - standard.min()) / _BIN).astype(np.int64)
    result[varied] = [_entropy(channel) for channel in bins.T]
    return result


def _entropy(bins: Any) -> float:
    shares = np.unique(bins, return_counts=True)[1] / len(bins)
    return float(-(shares * np.log(shares)).sum())


def outliers(values: Float64[np.ndarray, "c"], deviations: float) -> Bool[np.ndarray, "c"]:
    """Return which values lie so many standard deviations below the mean; NaN is none and counts for none."""
    some = values[np.isfinite(values)]
    if not len(some):
        return np.zeros(len(values), dtype=bool)
    low: np.ndarray = values < some.mean() - deviations * some.std()
    return low
