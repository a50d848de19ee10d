"""Model registry: build by name, load and save without unpickling."""

import copy
import hashlib
import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from clipguard.errors import ClipguardError, reason_of
from clipguard.models import weights
from clipguard.models.header import KEY, LONGEST_NAME, NAMES_KEY, spec_fields
from clipguard.models.nets import PreActResNet18, ShallowNet
from clipguard.runs import replacing
from clipguard.seeds import Seed
from clipguard.types import Preprocessing


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What is needed to build a classifier again, apart from its weights.

    Attributes:
        architecture: `preactresnet18[-WIDTH]`, `shallow[-WIDTH]`, a timm name, or `package.module:factory`
            called as `factory(num_classes=k)` and returning an `nn.Module` from [n, 3, h, w] floats to [n, k]
            logits.
        num_classes: k.
        preprocessing: how an image becomes what the net takes.
    """

    architecture: str = "preactresnet18-16"
    num_classes: int
    preprocessing: Preprocessing

    @classmethod
    def sized(
        cls, *, num_classes: int, input_size: tuple[int, int], architecture: str = "preactresnet18-16"
    ) -> "ModelSpec":
        """Return the spec of a net for small images, which are squashed to that size."""
        return cls(
            architecture=architecture,
            num_classes=num_classes,
            preprocessing=Preprocessing(size=input_size),
        )

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the images that the net takes, in pixels."""
        return self.preprocessing.size


class Normalized(nn.Module):
    """A network behind its input normalisation, so that every classifier here takes uint8 images."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.network = network
        # Not in the state dict: the weights file of a user's model stays exactly the user's.
        self.register_buffer(
            "mean", 255 * torch.tensor(spec.preprocessing.mean).view(1, 3, 1, 1), persistent=False
        )
        self.register_buffer(
            "std", 255 * torch.tensor(spec.preprocessing.std).view(1, 3, 1, 1), persistent=False
        )

    def forward(self, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Return logits of 0..255 images."""
        logits: Tensor = self.network(self.scaled(images))
        return logits

    def scaled(self, images: UInt8[Tensor, "n 3 h w"] | Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        """Return images of 0..255 as the network takes them."""
        x = (images.float() - self.mean) / self.std
        return x.contiguous(memory_format=torch.channels_last)


def logits_of(model: Normalized, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
    """Return the logits of images in [0, 1], differentiable in them, which whole grey levels are not."""
    logits: Tensor = model.network(model.scaled(255 * x))
    return logits


_OWN: dict[str, Callable[..., nn.Module]] = {"preactresnet18": PreActResNet18, "shallow": ShallowNet}

LARGEST_WIDTH = 4096


def _own(name: str) -> Callable[[int], nn.Module] | None:
    stem, _, width = name.partition("-")
    if stem not in _OWN or not (width or "64").isdecimal():
        return None
    if not width:
        return _OWN[stem]
    channels = int(width)
    if channels < 1:
        raise ClipguardError(f"model {name!r} would have no channels: give a width of at least 1")
    if channels > LARGEST_WIDTH:
        raise ClipguardError(f"model {name!r} is too wide: give a width of at most {LARGEST_WIDTH}")
    return lambda num_classes: _OWN[stem](num_classes, channels)


def _imported(name: str) -> Callable[[int], nn.Module]:
    module_name, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (Exception, SystemExit) as error:  # A module may raise anything while it is imported.
        raise ClipguardError(
            f"model factory {name!r} cannot be imported: {reason_of(error)} "
            "(PYTHONPATH=. makes the working folder's own modules importable)"
        ) from error
    return lambda num_classes: factory(num_classes=num_classes)


def _timm(name: str, size: tuple[int, int] | None) -> Callable[[int], nn.Module]:
    import timm

    if not timm.is_model(name):
        raise ClipguardError(
            f"unknown model {name!r}: give preactresnet18[-WIDTH], shallow[-WIDTH], a timm name or "
            "package.module:factory"
        )
    other = timm_arguments(name, size)
    return lambda num_classes: timm.create_model(name, pretrained=False, num_classes=num_classes, **other)


def loads_with_timm(name: str) -> bool:
    """Return whether an architecture is one of timm's."""
    return _own(name) is None and ":" not in name


def timm_arguments(name: str, size: tuple[int, int] | None) -> dict[str, Any]:
    """Return what timm has to be told to build one of its nets for images of that size.

    Such as for a transformer with an embedding for each place of the image.
    """
    import timm

    known = timm.get_pretrained_cfg(name)
    if size is not None and known is not None and known.fixed_input_size and size != known.input_size[1:]:
        return {"img_size": size}
    return {}


def factory_of(name: str, size: tuple[int, int] | None = None) -> Callable[[int], nn.Module]:
    """Return what makes an untrained net of that architecture for a number of classes.

    Args:
        name: of the architecture.
        size: of its images, where the net has to know it; its own by default.

    Raises:
        ClipguardError: no such architecture, or its module cannot be imported.
    """
    return _own(name) or (_imported(name) if ":" in name else _timm(name, size))


def build(spec: ModelSpec, seed: Seed) -> Normalized:
    """Return a freshly initialised model, channels-last, in evaluation mode.

    Raises:
        ClipguardError: the architecture is unknown, or its factory fails or does not return an `nn.Module`.
    """
    name = spec.architecture
    make = factory_of(name, spec.input_size)
    try:
        with seed.torch_global():
            network = make(spec.num_classes)
    except (Exception, SystemExit) as error:  # A factory may raise anything, too.
        raise ClipguardError(
            f"model factory {name!r} cannot be called with num_classes={spec.num_classes}: {reason_of(error)}"
        ) from error
    if not isinstance(network, nn.Module):
        raise ClipguardError(f"model factory {name!r} returned {type(network).__name__}, not an nn.Module")
    _check_state(network, name)
    return Normalized(network, spec).to(memory_format=torch.channels_last).eval()


def check_sound(model: Normalized, spec: ModelSpec) -> None:
    """Check that all weights are finite and that two noise images get the logits that the spec promises.

    A copy of the model is run in evaluation mode and in training mode, each with a gradient.

    Raises:
        ClipguardError: what the model does instead. It may be anybody's code.
    """
    name, (h, w) = spec.architecture, spec.input_size
    noise = torch.randint(256, (2, 3, h, w), dtype=torch.uint8, generator=Seed(0).torch())
    try:
        _check_state(model.network, name)
        if bad := [key for key, value in model.network.named_parameters() if not _finite(value)]:
            raise ClipguardError(f"model {name!r} has NaN or Inf weights in {bad[0][:LONGEST_NAME]!r}")
        trial = copy.deepcopy(model)
        for training in (False, True):
            with Seed(0).torch_global(trial.mean.device.index):
                # The network itself is called, so that whatever it returns reaches the checks.
                logits = trial.train(training).network(trial.scaled(noise.to(trial.mean.device)))
                _check_logits(logits, spec)
                logits.float().logsumexp(1).sum().backward()
    except ClipguardError:
        raise
    except Exception as error:
        raise ClipguardError(
            f"model {name!r} fails on images of {h} x {w} pixels, as float32: {reason_of(error)}"
        ) from error


def _check_state(network: nn.Module, name: str) -> None:
    for key, value in network.state_dict().items():
        # A lazy tensor has no shape yet: neither can be saved, or compared with a file.
        if not isinstance(value, Tensor) or nn.parameter.is_lazy(value):
            raise ClipguardError(f"model {name!r} has a state {key[:LONGEST_NAME]!r} that is no plain tensor")


def _finite(value: Tensor) -> bool:
    return bool(value.isfinite().all())


def _check_logits(logits: object, spec: ModelSpec) -> None:
    name, expected = spec.architecture, [2, spec.num_classes]
    shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if not isinstance(logits, Tensor) or shape != expected or not logits.is_floating_point():
        raise ClipguardError(f"model {name!r} gives {shape} for two images, not logits of {expected}")
    if not _finite(logits):
        raise ClipguardError(f"model {name!r} gives NaN or Inf logits: its weights are no classifier's")


def save(model: Normalized, spec: ModelSpec, path: Path, class_names: Sequence[str] = ()) -> None:
    """Write `path` (safetensors), spec and class names in its header, all or nothing."""
    fields = {**asdict(spec), **({NAMES_KEY: list(class_names)} if class_names else {})}
    # One entry only: safetensors writes several in random order, and equal models must give equal files.
    content = safetensors_bytes(_state(model), metadata={KEY: json.dumps(fields)})
    with replacing(path) as part:
        part.write_bytes(content)


def read_spec(path: Path) -> ModelSpec | None:
    """Return the spec that clipguard wrote into the weights file's header, or None for a foreign file.

    Raises:
        ClipguardError: the file is missing or no safetensors, its header is damaged or names code to run.
    """
    fields = spec_fields(path)
    return None if fields is None else ModelSpec(**fields)


def load(path: Path, spec: ModelSpec) -> Normalized:
    """Return the model of `spec` with the weights of `path`.

    Names may start with what wrappers of a net put before them, such as `module.`.

    Raises:
        ClipguardError: unreadable file, other names or shapes than the architecture's, or NaN or Inf weights.
    """
    claimed = weights.shapes(path)
    own = _own(spec.architecture)
    if own is not None:
        # On the meta device, without memory: a header of some bytes could otherwise claim any amount of it.
        with torch.device("meta"):
            _prefix(own(spec.num_classes), claimed, path, spec)
    model = build(spec, Seed(0))
    prefix = _prefix(model.network, claimed, path, spec)
    state = {name.removeprefix(prefix): value for name, value in weights.state(path).items()}
    # What `_prefix` lets be missing is no weight.
    model.network.load_state_dict(state, strict=False)
    return model


def _prefix(network: nn.Module, claimed: dict[str, tuple[int, ...]], path: Path, spec: ModelSpec) -> str:
    """Return what stands before all names of a file that fits the network."""
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    prefix, wrong = weights.fitting_prefix(shapes, claimed)
    if not wrong:
        return prefix
    words = (
        f"model {path} does not fit {spec.architecture} with {spec.num_classes} classes: "
        f"{len(wrong)} tensors missing, unknown or of another shape, first {wrong[0][:LONGEST_NAME]!r}"
    )
    if beside := weights.beside_a_model(claimed):
        words += f"; what starts with {beside!r} is no model, or a second one: save the model's weights alone"
    raise ClipguardError(words)


def weights_digest(model: Normalized) -> str:
    """Return the sha256 of a network's weights and their names, whatever order they come in."""
    return hashlib.sha256(safetensors_bytes(_state(model))).hexdigest()


def _state(model: Normalized) -> dict[str, Tensor]:
    # Copies, since safetensors refuses tensors that share memory, as tied weights do.
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in model.network.state_dict().items()
    }
