"""I-BAU: what one noise image does to all images is unlearned, by an implicit hypergradient.

Source: Zeng et al., ICLR 2022, and the authors' values: five rounds, batches of 100, evaluation mode
throughout. Inner problem of a round: one noise image d from zero, plain SGD at 10, one pass over the clean
samples; it maximises the cross-entropy of the net's own labels, less 0.001 |d|^2, for images in [0, 1].
Outer problem: Adam at 1e-4, as BackdoorBench has it for residual nets (the authors: 1e-3 for a small VGG,
which made the benchmark's narrow nets forget), one step a batch, on the cross-entropy of the given labels
with d added to 1 % of the batch. Its gradient goes through d by five fixed-point steps of 0.1. Left open and
chosen here: at least one image of a batch carries d, since 1 % of fewer than 100 would be none; the fixed
point is that of the same batch. A cut schedule has fewer rounds, and where one is too long, fewer batches in
it.
"""

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from clipguard.compute.batches import batches_on
from clipguard.compute.device import computing_on, device_for, tensor
from clipguard.compute.lanes import go_on
from clipguard.defenses.budget import cut, step_seconds
from clipguard.defenses.protocol import Case, Repaired
from clipguard.defenses.rivals.clean_start import (
    PUBLISHED_SAMPLES,
    CleanDataSettings,
    CleanStart,
    clean_start,
)
from clipguard.defenses.rivals.schedule import repeated, reporting
from clipguard.errors import ClipguardError, reason_of
from clipguard.models.spec import Normalized, logits_of
from clipguard.seeds import Seed
from clipguard.types import ImageSet


@dataclass(frozen=True, slots=True, kw_only=True)
class ImplicitUnlearning(CleanDataSettings):
    """Implicit backdoor adversarial unlearning.

    Attributes:
        rounds: of noise and unlearning, in the published schedule.
        published_samples: of that schedule; fewer have as many more rounds, and the noise as many more
            passes. 0 leaves both.
        batch_size: samples a step.
        lr: learning rate of the unlearning.
        noise_lr: learning rate of the noise image.
        noise_penalty: weight of the noise's squared length.
        patched_share: share of a batch that carries the noise.
        fixed_point_steps: of the hypergradient.
        fixed_point_lr: step of the map whose fixed point is the noise.
    """

    version: ClassVar[int] = 2

    rounds: int = 5
    published_samples: int = PUBLISHED_SAMPLES
    batch_size: int = 100
    lr: float = 1e-4
    noise_lr: float = 10.0
    noise_penalty: float = 1e-3
    patched_share: float = 0.01
    fixed_point_steps: int = 5
    fixed_point_lr: float = 0.1

    def defend(self, case: Case) -> Repaired:
        """Return the unlearned victim.

        Raises:
            ClipguardError: a layer of it has no second derivative.
        """
        start = clean_start(case, self, "i-bau")
        model, device = start.model, device_for(start.model)
        rows, rounds = self._rows(start), repeated(self.rounds, len(start.learned), self.published_samples)
        try:
            # Fused attention has no second derivative.
            with computing_on(device), sdpa_kernel(SDPBackend.MATH):
                share = start.share(lambda: rounds * len(rows) * self._batch_seconds(start, rows[0]))
                rounds, whole = cut(rounds, share), rounds
                if rounds == 1:
                    rows = rows[: cut(len(rows), min(1.0, share * whole))]
                began, report = time.monotonic(), reporting(case, "unlearn noise images", rounds)
                optimizer = torch.optim.Adam(model.parameters(), lr=self.lr)
                for number in range(rounds):
                    self._round(model, optimizer, start.learned, rows, start.seed.child("round", number))
                    report(number + 1)
                optimizer.zero_grad()
        except NotImplementedError as error:
            raise ClipguardError(
                f"I-BAU needs second derivatives, which {case.spec.architecture!r} lacks: leave out the "
                f"defence i-bau for this net ({reason_of(error)})"
            ) from error
        return Repaired(
            model=model,
            seconds={**start.scan, "unlearning": time.monotonic() - began},
            notes={"schedule_share": share, "rounds": rounds},
        )

    def _rows(self, start: CleanStart) -> list[Int64[np.ndarray, "_"]]:
        """Return the rows of each batch, the same in every round."""
        order = start.seed.child("order").generator().permutation(len(start.learned))
        return np.array_split(order, math.ceil(len(order) / self.batch_size))

    def _batch_seconds(self, start: CleanStart, rows: Int64[np.ndarray, "_"]) -> float:
        """Return what a batch takes in a round."""
        trial = copy.deepcopy(start.model)
        optimizer = torch.optim.Adam(trial.parameters(), lr=self.lr)
        return step_seconds(lambda: self._round(trial, optimizer, start.learned, [rows], start.seed))

    def _round(  # a model and its optimiser, a set and its batches
        self,
        model: Normalized,
        optimizer: torch.optim.Optimizer,
        data: ImageSet,
        rows: Sequence[Int64[np.ndarray, "_"]],
        seed: Seed,
    ) -> None:
        """Find the noise that disturbs the model most, then unlearn it, batch by batch."""
        model.eval()
        passes = repeated(1, len(data), self.published_samples)
        noise = self._noise(model, [images for images, _ in _batches(model, data, rows)] * passes)
        draw = seed.generator()
        for images, labels in _batches(model, data, rows):
            go_on()
            count = max(1, round(self.patched_share * len(images)))
            patched = torch.zeros(len(images), 1, 1, 1)
            patched[tensor(draw.choice(len(images), count, replace=False))] = 1
            patched = patched.to(images.device)

            def inner(d: Tensor, images: Tensor = images) -> Tensor:
                return self._inner(model, images, d)

            def outer(
                d: Tensor, images: Tensor = images, labels: Tensor = labels, patched: Tensor = patched
            ) -> Tensor:
                return cross_entropy(logits_of(model, images + patched * d).float(), labels)

            weights = [weight for weight in model.parameters() if weight.requires_grad]
            slopes = hypergradient(inner, outer, noise, weights, self.fixed_point_steps, self.fixed_point_lr)
            for weight, slope in zip(weights, slopes, strict=True):
                weight.grad = slope
            optimizer.step()

    def _noise(self, model: Normalized, batches: Iterable[Tensor]) -> Float[Tensor, "1 3 h w"]:
        """Return the noise image after a step a batch."""
        noise: Tensor | None = None
        for images in batches:
            go_on()
            noise = torch.zeros_like(images[:1]) if noise is None else noise
            noise.requires_grad_()
            (slope,) = torch.autograd.grad(self._inner(model, images, noise), [noise])
            noise = noise.detach() - self.noise_lr * slope
        assert noise is not None
        return noise

    def _inner(self, model: Normalized, images: Tensor, noise: Tensor) -> Float[Tensor, ""]:
        """Return what the noise minimises: how well a batch keeps the model's own labels, and its length."""
        with torch.no_grad():
            own = logits_of(model, images).float().argmax(1)
        loss = cross_entropy(logits_of(model, images + noise).float(), own)
        return self.noise_penalty * noise.square().sum() - loss


def _batches(
    model: Normalized, data: ImageSet, rows: Sequence[Int64[np.ndarray, "_"]]
) -> Iterator[tuple[Float[Tensor, "b 3 h w"], Int64[Tensor, "b"]]]:
    """Give images in [0, 1] and their labels, on the model's device."""
    device = device_for(model)
    for chosen, images in zip(rows, batches_on(device, data.images)(rows), strict=True):
        yield images.permute(0, 3, 1, 2).float() / 255, tensor(data.labels[chosen]).to(device.torch)


def hypergradient(  # two losses, what they depend on, and two numbers
    inner: Callable[[Tensor], Tensor],
    outer: Callable[[Tensor], Tensor],
    noise: Tensor,
    weights: Sequence[Tensor],
    steps: int,
    lr: float,
) -> list[Tensor]:
    """Return the gradient of the outer loss in the weights, where the inner loss decides the noise.

    The noise is taken for a fixed point of d - lr * (slope of the inner loss in d). The gradient through it
    is that of the implicit function theorem, its inverse matrix replaced by terms of a geometric series.

    Args:
        inner: loss of the noise, which depends on the weights, too.
        outer: loss of the weights under a noise.
        noise: where both are taken.
        weights: what the gradient is taken in.
        steps: terms of the series.
        lr: step of the fixed-point map.
    """
    noise = noise.detach().requires_grad_()
    slope, *direct = torch.autograd.grad(outer(noise), [noise, *weights], materialize_grads=True)
    mapped = noise - lr * torch.autograd.grad(inner(noise), [noise], create_graph=True)[0]
    series = torch.zeros_like(noise)
    for _ in range(steps):
        series = torch.autograd.grad(mapped, [noise], series, retain_graph=True)[0] + slope
    through = torch.autograd.grad(mapped, list(weights), series, materialize_grads=True)
    return [one + other for one, other in zip(direct, through, strict=True)]
