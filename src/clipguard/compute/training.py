"""The training kernel: uint8 images, batched augmentation, a loss function as argument."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from clipguard.compute.batches import batches_on
from clipguard.compute.checkpoint import load_checkpoint, save_checkpoint
from clipguard.compute.device import Device, computing_on, device_for, tensor
from clipguard.compute.lanes import go_on
from clipguard.compute.precision import training_block
from clipguard.compute.recipes import Recipe
from clipguard.errors import ClipguardError
from clipguard.models.nets import PreActBlock, PreActResNet18, ShallowNet
from clipguard.models.spec import Normalized
from clipguard.seeds import Seed
from clipguard.types import History, Rows

LossFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits [b, k], rows int64 [b], augmented images uint8 [b, 3, h, w]) -> scalar loss.

`rows` say which samples the batch holds, as a tensor of the processor; what a loss looks up by them goes to
the device of the logits, which are float32. The images are there for losses that ask another net about them.
"""

RowChoice = Callable[[int], Int64[np.ndarray, "m"] | None]
"""epoch -> rows to train on in that epoch; None ends the training before it."""

EpochHook = Callable[[int], None]
"""Called with the number of finished epochs."""


def augment(
    batch: UInt8[Tensor, "b h w 3"], recipe: Recipe, generator: torch.Generator
) -> UInt8[Tensor, "b h w 3"]:
    """Return the batch with one random crop and flip an image (one gather for all of them).

    The generator is the processor's, wherever the batch lies: all devices see the same crops.
    """
    b, h, w, _ = batch.shape
    pad = round(recipe.crop * max(h, w))
    if pad == 0 and not recipe.flip:
        return batch
    padded = torch.nn.functional.pad(batch, (0, 0, pad, pad, pad, pad))
    top, left = torch.randint(0, 2 * pad + 1, (2, b), generator=generator)
    rows, columns = top[:, None] + torch.arange(h), left[:, None] + torch.arange(w)
    if recipe.flip:
        mirrored = torch.rand(b, generator=generator) < 0.5
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    places = torch.arange(b)[:, None, None], rows[:, :, None], columns[:, None, :]
    return padded[tuple(place.to(batch.device) for place in places)]


def _rate(recipe: Recipe, progress: float) -> float:
    """Return the learning rate after a fraction of the training: up, then down, as in one-cycle training."""
    if progress < recipe.warmup:
        return recipe.lr * progress / recipe.warmup
    return recipe.lr if recipe.constant else recipe.lr * (1 - progress) / (1 - recipe.warmup)


def _optimizer(model: Normalized, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    if recipe.optimizer == "plain-sgd":
        return torch.optim.SGD(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        model.parameters(), lr=recipe.lr, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
    )


def _batches(rows: Int64[np.ndarray, "m"], recipe: Recipe, seed: Seed) -> list[Int64[np.ndarray, "b"]]:
    """Return the rows in random order, cut into batches whose sizes differ by at most one."""
    order = seed.generator().permutation(rows)
    if not len(order):
        raise ClipguardError("no sample is left to train on: the data set is too small for a defence")
    return np.array_split(order, math.ceil(len(order) / recipe.batch_size))


@dataclass(frozen=True, slots=True)
class _Step:
    """What an epoch's steps share."""

    recipe: Recipe
    optimizer: torch.optim.Optimizer
    loss: LossFunction
    epoch: int
    generator: torch.Generator
    device: Device
    block: Callable[[], AbstractContextManager[None]]


def _pass(
    model: Normalized,
    batches: list[Int64[np.ndarray, "_"]],
    pictures: Iterator[UInt8[Tensor, "_ h w 3"]],
    step: _Step,
) -> float:
    """Train for one epoch and return the mean loss; the model is left in evaluation mode."""
    recipe, optimizer = step.recipe, step.optimizer
    total = torch.zeros((), dtype=torch.float64, device=step.device.torch)
    # Anew in each epoch, so that a resumed training does as the one that was killed. Without float16, it only
    # hands things through.
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**12, enabled=step.device.dtype == "float16")
    model.train()
    for number, (chosen, picked) in enumerate(zip(batches, pictures, strict=True)):
        go_on()
        for group in optimizer.param_groups:
            group["lr"] = _rate(recipe, (step.epoch + (number + 0.5) / len(batches)) / recipe.epochs)
        batch = augment(picked, recipe, step.generator).permute(0, 3, 1, 2)
        with step.block():
            logits = model(batch)
        value = step.loss(logits.float(), tensor(chosen), batch)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        # Read once, at the end: a GPU would be waited for.
        total += value.detach()
    model.eval()
    return float(total) / len(batches)


_WITHOUT_NOISE: Final = (
    *(Normalized, PreActResNet18, PreActBlock, ShallowNet),
    *(nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.ReLU, nn.Sequential),
)


def _noise(model: Normalized, seed: Seed, device: Device) -> AbstractContextManager[None]:
    """Return a block for one epoch: anybody's layer may draw from the global generator, as dropout does.

    There is one such generator, so that lanes with such layers wait for each other.
    """
    quiet = all(type(layer) in _WITHOUT_NOISE for layer in model.modules())
    return nullcontext() if quiet else seed.torch_global(device.gpu)


def fit(  # noqa: PLR0913  # the kernel: whatever is fixed is in the recipe
    model: Normalized,
    images: Rows,
    rows: Int64[np.ndarray, "m"] | RowChoice,
    loss: LossFunction,
    recipe: Recipe,
    seed: Seed,
    on_epoch: EpochHook | None = None,
    checkpoint: Path | None = None,
    *,
    exact: bool = False,
) -> History:
    """Train `model` in place on `images[rows]` and return the mean loss and the seconds so far of each epoch.

    Batches hold only the given rows, so that no other sample reaches the loss or BatchNorm's statistics. They
    differ in size by at most one, so that no tiny last batch distorts BatchNorm. A function
    `rows` is asked before every epoch.

    With a `checkpoint`, each finished epoch is noted in that file, and a training that finds it there goes on
    after the last one: to the same weights, if `rows` and `loss` remember nothing of earlier epochs.

    The model is moved to the current device first, and stays there. On the processor, the training is in
    float32 if it is to be `exact`, else in what the processor multiplies fastest (see `precision`).

    Raises:
        ClipguardError: the loss of an epoch is not finite, or a batch does not fit into the GPU's memory.
    """
    device = device_for(model)
    optimizer = _optimizer(model, recipe)
    done = [] if checkpoint is None else load_checkpoint(checkpoint, model, optimizer)
    began = time.monotonic() - (done[-1][1] if done else 0.0)
    size = images.shape[1], images.shape[2]
    block = device.autocast if exact else partial(training_block, device, model, size)
    with computing_on(device), _fitting(recipe, images):
        pictures = batches_on(device, images)
        for epoch in range(recipe.epochs):
            if epoch >= len(done):
                chosen = rows(epoch) if callable(rows) else rows
                if chosen is None:
                    break
                batches = _batches(chosen, recipe, seed.child("order", epoch))
                generator = seed.child("augment", epoch).torch()
                step = _Step(recipe, optimizer, loss, epoch, generator, device, block)
                with _noise(model, seed.child("noise", epoch), device):
                    mean = _pass(model, batches, pictures(batches), step)
                _check_finite(mean, epoch)
                done.append((mean, time.monotonic() - began))
                if checkpoint is not None:
                    save_checkpoint(checkpoint, model, optimizer, done)
            if on_epoch is not None:
                on_epoch(epoch + 1)
    columns = {
        "epoch": tuple(map(float, range(1, len(done) + 1))),
        "loss": tuple(mean for mean, _ in done),
        "seconds": tuple(seconds for _, seconds in done),
    }
    return History(columns=columns, seconds=time.monotonic() - began)


def _check_finite(mean: float, epoch: int) -> None:
    if not math.isfinite(mean):
        why = f"training diverged in epoch {epoch + 1}: its loss is {mean}"
        raise ClipguardError(f"{why}: give a model with usual weights, or a lower learning rate")


@contextmanager
def _fitting(recipe: Recipe, images: Rows) -> Iterator[None]:
    """Say what to do where a batch does not fit into the GPU's memory. Half a batch would train otherwise."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        h, w = images.shape[1:3]
        what = f"the GPU's memory does not hold a training step of {recipe.batch_size} images of {h} x {w}"
        raise ClipguardError(
            f"{what}: free some, or give a smaller model, another GPU or device cpu"
        ) from error


def cross_entropy(labels: Int64[np.ndarray, "n"]) -> LossFunction:
    """Return the plain loss: mean cross-entropy of the given labels."""
    given = tensor(labels)

    def loss(logits: Float[Tensor, "b k"], rows: Tensor, _: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(logits, given[rows].to(logits.device))

    return loss
