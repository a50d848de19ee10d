"""The model of --model: how it is built and wants its images, by options, file or timm, in this order."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipguard.cli.options import DefendOptions
from clipguard.cli.text import channels_from, parsed, share_from, size_from
from clipguard.data import ImageSource
from clipguard.data.decode import sampled_sizes
from clipguard.errors import ClipguardError
from clipguard.models import weights
from clipguard.models.preprocessing import as_they_are, described, timm_preprocessing
from clipguard.models.spec import ModelSpec, read_spec
from clipguard.types import Preprocessing


def spec_of_model(options: DefendOptions, source: ImageSource) -> tuple[ModelSpec, str]:
    """Return how the model of --model is built, and in words how its images are prepared and who says so.

    Raises:
        ClipguardError: neither header nor options nor timm say it, or the file cannot be read.
    """
    path = Path(str(options.model))
    given, known = _given(options), read_spec(path)
    architecture = options.architecture or (None if known is None else known.architecture)
    if architecture is None:
        raise ClipguardError(
            f"model {path} does not say how it is built: give --architecture and --input-size"
        )
    if known is not None and options.architecture in (None, known.architecture):
        preprocessing, origin = known.preprocessing, "the file's"
    elif (timms := timm_preprocessing(architecture)) is not None:
        preprocessing, origin = _timms(timms, given, source), "timm's"
    else:
        preprocessing, origin = _unknown(path, architecture, given, source), "usual for small images"
    spec = ModelSpec(
        architecture=architecture,
        num_classes=known.num_classes if known is not None else len(source.class_names),
        preprocessing=replace(preprocessing, **given),
    )
    options_given = f"; given: {', '.join(given)}" if given else ""
    prefix = weights.common_prefix(weights.shapes(path))
    prefixed = f"; the names of its weights start with {prefix!r}" if prefix else ""
    return spec, f"{architecture}, {described(spec.preprocessing)} ({origin}{options_given}){prefixed}"


def _given(options: DefendOptions) -> dict[str, Any]:
    """Return the fields of the preprocessing that options say."""
    std = parsed(channels_from, options.std, "--std")
    if std is not None and min(std) <= 0:
        raise ClipguardError(f"--std {options.std!r}: the numbers must be above 0")
    fields = {
        "size": parsed(size_from, options.input_size, "--input-size"),
        "resize": options.resize,
        "crop": parsed(share_from, options.crop, "--crop"),
        "interpolation": options.interpolation,
        "mean": parsed(channels_from, options.mean, "--mean"),
        "std": std,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _timms(timms: Preprocessing, given: Mapping[str, Any], source: ImageSource) -> Preprocessing:
    """Return timm's preprocessing; images that all have the size given are neither enlarged nor cut."""
    if "size" in given and set(sampled_sizes(source)) == {given["size"]}:
        return as_they_are(timms)
    return timms


def _unknown(path: Path, architecture: str, given: Mapping[str, Any], source: ImageSource) -> Preprocessing:
    """Return the preprocessing of a net that nothing is known of, as far as no image is distorted by it."""
    if "size" not in given:
        raise ClipguardError(
            f"model {path} does not say how it is built: give --architecture and --input-size"
        )
    height, width = given["size"]
    # Nets of this package are trained on squashed images.
    if ":" in architecture and "resize" not in given:
        other = [(h, w) for h, w in sorted(sampled_sizes(source)) if h * width != w * height]
        if other:
            raise ClipguardError(
                f"how {architecture} takes images of {other[0][0]} x {other[0][1]} pixels at {height} x "
                f"{width} is not known: give --resize squash, shortest (with --crop) or longest"
            )
    return Preprocessing(size=(height, width))
