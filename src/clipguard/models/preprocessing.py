"""How a model wants its images: what timm says of its architectures, and bounds on what anybody says."""

import math
from dataclasses import replace
from typing import Any, Final

from clipguard.types import Preprocessing

LARGEST_SIDE: Final = 4096
SMALLEST_CROP: Final = 0.1
RESIZES: Final = ("squash", "shortest", "longest")
INTERPOLATIONS: Final = ("nearest", "bilinear", "bicubic", "lanczos")

_CROP_MODES: Final = {"center": "shortest", "squash": "squash", "border": "longest"}


def checked(preprocessing: Preprocessing) -> Preprocessing:
    """Return the same value.

    Raises:
        ValueError: it is nothing that an image could be brought to.
    """
    numbers = (*preprocessing.mean, *preprocessing.std)
    height, width = preprocessing.size
    if not (all(map(math.isfinite, numbers)) and min(preprocessing.std) > 0):
        raise ValueError("mean and std must be finite, std above 0")
    if not (0 < height <= LARGEST_SIDE and 0 < width <= LARGEST_SIDE):
        raise ValueError(f"input_size {height} x {width} is not in 1 to {LARGEST_SIDE}")
    if not SMALLEST_CROP <= preprocessing.crop <= 1:
        raise ValueError(f"crop {preprocessing.crop} is not in {SMALLEST_CROP} to 1")
    if preprocessing.resize not in RESIZES or preprocessing.interpolation not in INTERPOLATIONS:
        raise ValueError(f"resize is none of {RESIZES}, or interpolation none of {INTERPOLATIONS}")
    if not 0 <= preprocessing.fill <= 255:
        raise ValueError("fill is not in 0 to 255")
    return preprocessing


def preprocessing_from(fields: Any) -> Preprocessing:
    """Return what `dataclasses.asdict` made of a preprocessing.

    Raises:
        ValueError, TypeError, KeyError, OverflowError: it is none.
    """
    height, width = map(int, fields["size"])
    return checked(
        Preprocessing(
            size=(height, width),
            resize=fields["resize"],
            crop=float(fields["crop"]),
            interpolation=fields["interpolation"],
            fill=int(fields["fill"]),
            mean=_channels(fields["mean"]),
            std=_channels(fields["std"]),
        )
    )


def _channels(values: Any) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


def as_they_are(preprocessing: Preprocessing) -> Preprocessing:
    """Return the preprocessing for images that have the net's own size already: neither enlarged nor cut."""
    return replace(preprocessing, resize="squash", crop=1.0)


def timm_preprocessing(architecture: str) -> Preprocessing | None:
    """Return what timm's own configuration says of one of its architectures; None where it says nothing."""
    import timm
    from timm.data.config import resolve_data_config

    if ":" in architecture or not timm.is_model(architecture):
        return None
    known = timm.get_pretrained_cfg(architecture)
    if known is None:
        return None
    fields: dict[str, Any] = resolve_data_config(pretrained_cfg=known.to_dict())  # type: ignore[no-untyped-call]  # timm leaves both untyped
    interpolation = fields["interpolation"]
    mean = _channels(fields["mean"])
    return Preprocessing(
        size=fields["input_size"][1:],
        resize=_CROP_MODES.get(fields["crop_mode"], "shortest"),  # type: ignore[arg-type]  # one of the three
        crop=float(fields["crop_pct"]),
        # A few are evaluated with a choice at random.
        interpolation=interpolation if interpolation in INTERPOLATIONS else "bicubic",
        # What timm puts around an image is the mean.
        fill=round(255 * sum(mean) / 3),
        mean=mean,
        std=_channels(fields["std"]),
    )


def described(preprocessing: Preprocessing) -> str:
    """Return the preprocessing in words."""
    (height, width), crop = preprocessing.size, preprocessing.crop
    ways = {
        "squash": "squashed",
        "shortest": "shorter side fitted",
        "longest": "longer side fitted and padded",
    }
    cut = "" if crop == 1 else f", centre {crop:.1%} of the side"
    mean, std = (
        ", ".join(f"{value:.4g}" for value in some) for some in (preprocessing.mean, preprocessing.std)
    )
    how = f"{ways[preprocessing.resize]}, {preprocessing.interpolation}{cut}"
    return f"{height} x {width} pixels ({how}), mean {mean}, std {std}"
