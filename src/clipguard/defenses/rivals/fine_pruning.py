"""FP: inputs of the last layer that clean samples leave silent are pruned, then the net is fine-tuned.

Source: Liu et al., RAID 2018, with BackdoorBench's values: inputs in ascending order of their mean over the
clean samples; steps of 1 % until held-out accuracy has fallen by 10 % of what it was, and the step that went
too far is restored; 100 epochs of fine-tuning at 0.01. Left open and chosen here: the layer is the head,
the last linear layer, so that every net with one takes part. The mean is that of absolute values, which is
the same after a ReLU and still means silence after a normalisation. Fine-tuning never brings an input back.
"""

import copy
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Int64
from torch import nn

from clipguard.compute.device import device_for, tensor
from clipguard.compute.inference import features, planes
from clipguard.compute.training import cross_entropy, fit
from clipguard.defenses.budget import cut
from clipguard.defenses.protocol import Case, Repaired
from clipguard.defenses.rivals.clean_start import CleanStart, clean_start, seconds_of_fit
from clipguard.defenses.rivals.finetuning import FineTuningSettings
from clipguard.defenses.rivals.schedule import reporting
from clipguard.defenses.rivals.thresholds import held_out_accuracy, strongest_kept
from clipguard.errors import ClipguardError
from clipguard.models.features import Head, head_of

STEPS: Final = 100
"""Into which the inputs are cut: of 1 % each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinePruning(FineTuningSettings):
    """Fine-pruning.

    Attributes:
        accuracy_drop: share of the held-out accuracy that pruning may cost.
    """

    accuracy_drop: float = 0.1

    def defend(self, case: Case) -> Repaired:
        """Return the pruned and fine-tuned victim.

        Raises:
            ClipguardError: it has no linear layer at its end.
        """
        start = clean_start(case, self, "fp")
        model, data, began = start.model, start.learned, time.monotonic()
        head = head_of(model, planes(data.images[:1]))
        if head is None:
            raise ClipguardError(
                f"fine-pruning finds no last linear layer in {case.spec.architecture!r}: leave out the "
                "defence fp for this net"
            )
        pruned = self._pruned(start, head)
        pruning = time.monotonic() - began
        recipe, loss = self.recipe(case, model, len(data)), cross_entropy(data.labels)
        # Pruning has no schedule to cut, so that fine-tuning is left the rest.
        left = None if start.seconds_left is None else max(0.0, start.seconds_left - pruning)
        share = replace(start, seconds_left=left).share(
            lambda: seconds_of_fit(copy.deepcopy(model), data, loss, recipe, start.seed)
        )
        recipe = replace(recipe, epochs=cut(recipe.epochs, share))
        report = reporting(case, "fine-tune the pruned model", recipe.epochs)
        with silenced(head, pruned):
            history = fit(model, data.images, np.arange(len(data)), loss, recipe, start.seed, report)
        return Repaired(
            model=model,
            seconds={**start.scan, "pruning": pruning, "fine-tuning": history.seconds},
            notes={"schedule_share": share, "pruned": len(pruned) / head.weight.shape[1]},
        )

    def _pruned(self, start: CleanStart, head: Head) -> Int64[np.ndarray, "p"]:
        """Prune the head and return the numbers of the inputs that it now ignores."""
        model, data = start.model, start.learned
        device_for(model)
        activity = np.abs(features(model, data.images, np.arange(len(data)))).mean(0)
        order, weight = np.argsort(activity, kind="stable"), head.weight.detach().clone()
        floor = (1 - self.accuracy_drop) * held_out_accuracy(model, start.held_out)

        def accuracy(count: int) -> float:
            prune(head, order[:count])
            return held_out_accuracy(model, start.held_out)

        width = len(order)
        # A narrow layer has fewer inputs than steps; its last input stays in any case.
        counts = sorted({math.ceil(width * step / STEPS) for step in range(1, STEPS)} - {width})
        count = strongest_kept(counts, accuracy, floor) or 0
        with torch.no_grad():
            head.weight.copy_(weight)
        prune(head, order[:count])
        return order[:count]


def prune(head: Head, inputs: Int64[np.ndarray, "p"]) -> None:
    """Let a head ignore the inputs of those numbers."""
    with torch.no_grad():
        head.weight[:, tensor(inputs).to(head.weight.device)] = 0


@contextmanager
def silenced(head: Head, inputs: Int64[np.ndarray, "p"]) -> Iterator[None]:
    """Give a head zeros in place of the inputs of those numbers, so that no training makes use of them."""
    numbers = tensor(inputs)

    def silence(layer: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        values = given[0]
        axis = 1 if isinstance(layer, nn.Conv2d) else -1
        return (values.index_fill(axis, numbers.to(values.device), 0.0), *given[1:])

    hook = head.register_forward_pre_hook(silence)
    try:
        yield
    finally:
        hook.remove()
