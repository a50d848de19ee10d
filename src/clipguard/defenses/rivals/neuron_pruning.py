"""ANP: channels that an adversary's noise uses are pruned.

Source: Wu and Wang, NeurIPS 2021, and the authors' values: batches of 128 drawn with replacement, 2,000 steps
of SGD at 0.2 with momentum 0.9 on one mask for each BatchNorm channel. In each step, noise on the scale and
the shift of every channel begins uniform within 0.4 and takes one sign step of 0.4 up the loss. The masks
minimise 0.2 of the clean loss and 0.8 of the loss under noise, and stay in [0, 1]. Images are cropped at
random by 4 of 32 pixels. Then the scales of channels whose mask is low are set to 0 in the untouched model,
by thresholds from 0 to 0.9 in steps of 0.05.
Left open and chosen here: the threshold is the highest before held-out accuracy falls by 5 % of what it was;
the published code leaves it to test data. Images are mirrored where the victim's recipe does so.

Pruned are the channels of BatchNorm layers with a scale, in any net; a net without them cannot be pruned so.
"""

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from clipguard.compute.batches import batches_on
from clipguard.compute.device import computing_on, device_for, tensor
from clipguard.compute.lanes import go_on
from clipguard.compute.recipes import Recipe
from clipguard.compute.training import augment
from clipguard.defenses.budget import TIMED, cut, step_seconds
from clipguard.defenses.protocol import Case, Repaired
from clipguard.defenses.rivals.clean_start import CleanDataSettings, CleanStart, clean_start
from clipguard.defenses.rivals.sam import at_weights
from clipguard.defenses.rivals.schedule import PUBLISHED_CROP, reporting
from clipguard.defenses.rivals.thresholds import held_out_accuracy, strongest_kept
from clipguard.errors import ClipguardError
from clipguard.models.spec import Normalized
from clipguard.seeds import Seed

THRESHOLDS: Final = tuple(step / 20 for step in range(19))
"""Masks up to which a channel is pruned: 0 to 0.9."""

MOMENTUM: Final = 0.9

Masks = dict[str, Tensor]
"""By name of a BatchNorm layer: one number for each of its channels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuronPruning(CleanDataSettings):
    """Adversarial neuron pruning.

    Attributes:
        steps: of the masks' training.
        batch_size: samples a step.
        lr: learning rate of the masks.
        noise: bound of the noise at its beginning, and its step.
        clean_weight: of the loss without noise; the loss under noise has the rest.
        accuracy_drop: share of the held-out accuracy that pruning may cost.
        crop: padding of the random crops, as a share of the side.
    """

    steps: int = 2000
    batch_size: int = 128
    lr: float = 0.2
    noise: float = 0.4
    clean_weight: float = 0.2
    accuracy_drop: float = 0.05
    crop: float = PUBLISHED_CROP

    def defend(self, case: Case) -> Repaired:
        """Return the pruned victim.

        Raises:
            ClipguardError: it has no BatchNorm.
        """
        start, began = clean_start(case, self, "anp"), time.monotonic()
        if not (names := scaled_layers(start.model)):
            raise ClipguardError(
                f"adversarial neuron pruning needs BatchNorm, and {case.spec.architecture!r} has none: leave "
                "out the defence anp for this net"
            )
        share = start.share(lambda: self.steps * self._step_seconds(case, start, names))
        steps = cut(self.steps, share)
        report = reporting(case, "train the masks of channels", steps)
        masks = fresh_masks(start.model, names)
        for done in self._training(start, masks, case.recipe, steps):
            report(done)
        trained = time.monotonic()
        threshold, pruned = self._prune(start, masks)
        return Repaired(
            model=start.model,
            seconds={**start.scan, "masks": trained - began, "pruning": time.monotonic() - trained},
            notes={"schedule_share": share, "threshold": threshold, "pruned": pruned},
        )

    def _step_seconds(self, case: Case, start: CleanStart, names: list[str]) -> float:
        training = self._training(start, fresh_masks(start.model, names), case.recipe, TIMED + 1)
        return step_seconds(lambda: next(training))

    def _training(self, start: CleanStart, masks: Masks, recipe: Recipe, steps: int) -> Iterator[int]:
        """Train masks in place and give the number of finished steps after each."""
        model, data, device = start.model, start.learned, device_for(start.model)
        draw = start.seed.child("rows").generator()
        rows = [draw.integers(0, len(data), self.batch_size) for _ in range(steps)]
        recipe, crops = replace(recipe, crop=self.crop), start.seed.child("augment").torch()
        optimizer = torch.optim.SGD(masks.values(), lr=self.lr, momentum=MOMENTUM)
        pictures = batches_on(device, data.images)(rows)
        for number, (chosen, picked) in enumerate(zip(rows, pictures, strict=True)):
            go_on()
            batch = augment(picked, recipe, crops).permute(0, 3, 1, 2)
            labels = tensor(data.labels[chosen]).to(device.torch)
            seed = start.seed.child("step", number)
            # A block for each step: in between, others compute.
            with computing_on(device), seed.torch_global(device.gpu):
                model.train()
                value = self._loss(model, masks, batch, labels, seed)
                optimizer.zero_grad()
                value.backward()
                model.eval()
                optimizer.step()
                for mask in masks.values():
                    mask.data.clamp_(0, 1)
            yield number + 1

    def _loss(
        self, model: Normalized, masks: Masks, batch: Tensor, labels: Tensor, seed: Seed
    ) -> Float[Tensor, ""]:
        """Return the loss of a step: of the masked model without noise, and with an adversary's."""
        noise = uniform_noise(masks, self.noise, seed)
        values = [value for pair in noise.values() for value in pair]
        loss = cross_entropy(masked_logits(model, masks, noise, batch), labels)
        for value, slope in zip(values, torch.autograd.grad(loss, values), strict=True):
            value.data.add_(slope.sign(), alpha=self.noise)
        noisy = cross_entropy(masked_logits(model, masks, noise, batch), labels)
        clean = cross_entropy(masked_logits(model, masks, {}, batch), labels)
        return self.clean_weight * clean + (1 - self.clean_weight) * noisy

    def _prune(self, start: CleanStart, masks: Masks) -> tuple[float, float]:
        """Prune the model; return the chosen threshold and the share of channels that this prunes."""
        model = start.model
        floor = (1 - self.accuracy_drop) * held_out_accuracy(model, start.held_out)

        def accuracy(threshold: float) -> float:
            trial = copy.deepcopy(model)
            prune(trial, masks, threshold)
            return held_out_accuracy(trial, start.held_out)

        threshold = strongest_kept(THRESHOLDS, accuracy, floor)
        if threshold is None:
            return 0.0, 0.0
        pruned = prune(model, masks, threshold)
        return threshold, pruned / sum(len(mask) for mask in masks.values())


Noise = dict[str, tuple[Tensor, Tensor]]
"""By name of a BatchNorm layer: relative noise on its scale and on its shift."""


def scaled_layers(model: Normalized) -> list[str]:
    """Return the names of the BatchNorm layers that scale their channels."""
    modules = model.named_modules()
    return [name for name, layer in modules if isinstance(layer, _BatchNorm) and layer.affine]


def fresh_masks(model: Normalized, names: Sequence[str]) -> Masks:
    """Return masks that change nothing."""
    device_for(model)
    return {name: torch.ones_like(_layer(model, name).weight).requires_grad_() for name in names}


def _layer(model: Normalized, name: str) -> _BatchNorm:
    layer = model.get_submodule(name)
    assert isinstance(layer, _BatchNorm)
    return layer


def uniform_noise(masks: Masks, bound: float, seed: Seed) -> Noise:
    """Return noise within a bound for the scales and shifts of all layers, drawn by the processor."""
    generator = seed.torch()

    def drawn(mask: Tensor) -> Tensor:
        values = bound * (2 * torch.rand(mask.shape, generator=generator) - 1)
        return values.to(mask.device).requires_grad_()

    return {name: (drawn(mask), drawn(mask)) for name, mask in masks.items()}


def masked_logits(model: Normalized, masks: Masks, noise: Noise, batch: Tensor) -> Float[Tensor, "b k"]:
    """Return the logits of a model whose channels are scaled by masks and disturbed by noise.

    The scale of a channel becomes its own times mask plus noise, its shift its own times one plus noise. The
    model itself stays as it is, BatchNorm's running statistics included.
    """
    changed = {}
    for name, mask in masks.items():
        scale, shift = noise.get(name, (0.0, 0.0))
        layer = _layer(model, name)
        changed[f"{name}.weight"] = layer.weight.detach() * (mask + scale)
        changed[f"{name}.bias"] = layer.bias.detach() * (1 + shift)
    return at_weights(model, changed, batch)


def prune(model: Normalized, masks: Masks, threshold: float) -> int:
    """Set the scales of channels whose mask is at most a threshold to 0; return how many these are."""
    count = 0
    with torch.no_grad():
        for name, mask in masks.items():
            low = mask <= threshold
            _layer(model, name).weight[low] = 0
            count += int(low.sum())
    return count
