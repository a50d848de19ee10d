"""Where and how precisely is computed: a value that is chosen once, and the way of arrays there and back.

`computing_on(device)` makes it the device of all that is computed inside. Where nobody has chosen one, a
model is computed on where it lies.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from clipguard.errors import ClipguardError, reason_of

VARIABLE: Final = "CLIPGUARD_DEVICE"
"""In the environment: the device where none is given."""

PRECISION_VARIABLE: Final = "CLIPGUARD_PRECISION"
"""In the environment: float32 makes all trainings on a processor exact, so that machines agree."""

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A processor or one GPU.

    Attributes:
        kind: `cpu` or `cuda`.
        index: number of the GPU.
        dtype: of matrix products and convolutions; sums, norms, losses and weights are float32 in any case.
        trained_in: `dtype` of a large training on the processor, where that is faster: see `precision`.
        name: of the GPU, as its maker calls it.
        passed_over: GPUs that were tried before and do not work, with the reason.
    """

    kind: Literal["cpu", "cuda"] = "cpu"
    index: int = 0
    dtype: Precision = "float32"
    trained_in: Precision = "float32"
    name: str = ""
    passed_over: tuple[str, ...] = ()

    @property
    def torch(self) -> torch.device:
        """Return it as torch calls it."""
        return torch.device("cpu") if self.kind == "cpu" else torch.device("cuda", self.index)

    @property
    def gpu(self) -> int | None:
        """The number of the GPU, None on the processor."""
        return self.index if self.kind == "cuda" else None

    @property
    def description(self) -> str:
        """What results depend on, in words: the same text gives the same floats, on the same software."""
        return "cpu" if self.kind == "cpu" else f"{self.name}, {self.dtype}"

    @property
    def arithmetic(self) -> dict[str, str]:
        """What a large training depends on, for keys; nothing of a processor that trains in float32."""
        if self.kind == "cuda":
            return {"device": self.description}
        return {} if self.trained_in == "float32" else {"trained_in": self.trained_in}

    def autocast(self, *, inference: bool = False) -> AbstractContextManager[None]:
        """Return a block in which networks compute in `dtype`.

        Args:
            inference: nothing is learned of it, so that float16, the more exact one, stands in for bfloat16.
        """
        if self.kind == "cpu" or self.dtype == "float32":
            return nullcontext()
        name = "float16" if inference else self.dtype
        block: AbstractContextManager[None] = torch.autocast("cuda", getattr(torch, name))
        return block

    def selected(self) -> AbstractContextManager[None]:
        """Return a block in which this thread uses no other GPU by default, as it would the first."""
        return nullcontext() if self.kind == "cpu" else torch.cuda.device(self.index)


CPU: Final = Device()
"""The processor, exact in all that it computes."""

_CURRENT: ContextVar[Device | None] = ContextVar("device", default=None)


def current_device() -> Device | None:
    """Return what `computing_on` says, None outside of it."""
    return _CURRENT.get()


@contextmanager
def computing_on(device: Device) -> Iterator[None]:
    """Compute everything inside the block on that device, and the same each time."""
    token = _CURRENT.set(device)
    try:
        with device.selected(), _repeatable() if device.kind == "cuda" else nullcontext():
            yield
    finally:
        _CURRENT.reset(token)


@contextmanager
def _repeatable() -> Iterator[None]:
    flags: Any = torch.backends.cudnn
    before = flags.deterministic, flags.benchmark
    flags.deterministic, flags.benchmark = True, False
    try:
        yield
    finally:
        flags.deterministic, flags.benchmark = before


def arithmetic() -> dict[str, Any]:
    """Return what the last bits of a training here depend on, for keys: threads, GPU, precision."""
    device = current_device() or CPU
    return {"threads": torch.get_num_threads(), **device.arithmetic}


def here() -> torch.device:
    """Return where new tensors go: the current device, or the processor."""
    return (current_device() or CPU).torch


def device_for(module: nn.Module) -> Device:
    """Return the current device, or where a module's first weight lies, to which all of it is now moved."""
    first = next(module.parameters(), None)
    at = torch.device("cpu") if first is None else first.device
    device = current_device()
    if device is None:
        device = Device(kind="cuda", index=at.index) if at.type == "cuda" else CPU
    if at != device.torch:
        module.to(device.torch)
    return device


def choose_device(name: str | None = None) -> Device:
    """Return the device of that name; it computes.

    Args:
        name: `cpu`; `cuda` or `cuda:N`; `auto` takes the first GPU that works, else the processor. None takes
            the name in CLIPGUARD_DEVICE, else `auto`.

    Raises:
        ClipguardError: there is no such device, or it does not compute.
    """
    name = name or os.environ.get(VARIABLE) or "auto"
    if name == "cpu":
        return _processor()
    if name == "auto":
        return _first_that_works()
    number = name.removeprefix("cuda").removeprefix(":") or "0"
    if not name.startswith("cuda") or not number.isdecimal():
        raise ClipguardError(f"device {name!r} is unknown: give auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count()
    if int(number) >= count:
        raise ClipguardError(f"device {name} is not there: torch sees {count} GPUs; give another, or cpu")
    device = _gpu(int(number))
    if fault := _fault(device):
        raise ClipguardError(f"device {name} does not compute: {fault}; give another, or cpu")
    return device


def _processor() -> Device:
    """Return the processor; it trains large nets in bfloat16 where that is faster.

    AMX is made for it, and AMD's AVX-512 instructions are faster than float32. Intel's took 1.3 to 1.4 times
    as long (see `gains_by_bfloat16`).

    Raises:
        ClipguardError: CLIPGUARD_PRECISION says something else than float32.
    """
    precision = os.environ.get(PRECISION_VARIABLE)
    if precision not in (None, "", "float32"):
        raise ClipguardError(f"{PRECISION_VARIABLE} is {precision!r}: give float32, or leave it out")
    there = torch.cpu.get_capabilities()
    amd = str(there.get("cpu_name", "")).startswith("AMD")
    faster = there.get("amx_bf16") or (amd and there.get("avx512_bf16"))
    return replace(CPU, trained_in="bfloat16") if faster and not precision else CPU


def _first_that_works() -> Device:
    passed_over: tuple[str, ...] = ()
    for index in range(torch.cuda.device_count()):
        device = _gpu(index)
        fault = _fault(device)
        if fault is None:
            return replace(device, passed_over=passed_over)
        passed_over += (f"GPU cuda:{index} does not compute and was not used: {fault}",)
    return replace(_processor(), passed_over=passed_over)


def _gpu(index: int) -> Device:
    """Return the GPU with the fastest precision that it has units for."""
    try:
        generation, _ = torch.cuda.get_device_capability(index)
        name = torch.cuda.get_device_name(index)
    except Exception as error:  # A driver can fail in any way; the trial tells how.
        return Device(kind="cuda", index=index, name=reason_of(error))
    dtype: Precision = "bfloat16" if generation >= 8 else "float16" if generation == 7 else "float32"
    return Device(kind="cuda", index=index, name=name, dtype=dtype)


def _fault(device: Device) -> str | None:
    """Return why a convolution, a product and their gradients fail on the device, or None."""
    try:
        with device.selected(), device.autocast():
            images = torch.ones(2, 3, 8, 8, device=device.torch, requires_grad=True)
            kernel = torch.full((4, 3, 3, 3), 1 / 32, device=device.torch)
            maps = torch.nn.functional.conv2d(images, kernel).flatten(1)
            (slope,) = torch.autograd.grad((maps @ maps.T).float().sum(), [images])
            # Worked out by hand, and exact in every precision.
            right = bool((slope[:, :, 0, 0] == 27 / 64).all())
    except Exception as error:  # A driver can fail in any way.
        return reason_of(error)
    return None if right else "its results are wrong"


def tensor(array: Shaped[np.ndarray, "..."]) -> Tensor:
    """Return the array as a tensor of the processor that shares its memory."""
    return torch.from_numpy(array)


def array(values: Tensor) -> Shaped[np.ndarray, "..."]:
    """Return the values of a tensor, wherever it lives."""
    on_processor: np.ndarray = values.detach().cpu().numpy()
    return on_processor
