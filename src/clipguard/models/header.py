"""The header of a weights file: how the net is built, and its classes. It may be anybody's."""

from pathlib import Path
from typing import Any, Final

from clipguard.errors import ClipguardError
from clipguard.models import weights
from clipguard.models.preprocessing import checked, preprocessing_from
from clipguard.safety.limits import Limits, parse_json
from clipguard.types import Preprocessing

KEY: Final = "clipguard"
NAMES_KEY: Final = "class_names"
"""Under this name other programs' files may list their classes in the order of the logits, as JSON."""

LONGEST_NAME: Final = 200


def spec_fields(path: Path) -> dict[str, Any] | None:
    """Return the fields of the `ModelSpec` that clipguard wrote into a header, or None for a foreign file.

    Raises:
        ClipguardError: the file is missing or no safetensors, its header is damaged or names code to run.
    """
    text = weights.metadata(path).get(KEY)
    if text is None:
        return None
    try:
        fields = _checked(parse_json(text, Limits()))
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise ClipguardError(f"model {path} has a damaged clipguard header: {error}") from error
    if ":" in fields["architecture"]:
        # A weights file from a stranger must not choose which code is imported and called.
        raise ClipguardError(
            f"model {path} wants the code {fields['architecture']!r} to run: if you trust it, "
            "give the architecture yourself"
        )
    return fields


def _checked(fields: Any) -> dict[str, Any]:
    if not 0 < int(fields["num_classes"]) <= Limits().classes:
        raise ValueError(f"num_classes is not in 1 to {Limits().classes}")
    if len(str(fields["architecture"])) > LONGEST_NAME:
        raise ValueError(f"architecture has more than {LONGEST_NAME} characters")
    now = "preprocessing" in fields
    preprocessing = preprocessing_from(fields["preprocessing"]) if now else _before_preprocessing(fields)
    return {
        "architecture": str(fields["architecture"]),
        "num_classes": int(fields["num_classes"]),
        "preprocessing": preprocessing,
    }


def _before_preprocessing(fields: Any) -> Preprocessing:
    """Return the preprocessing of a header of before there was one: every image was squashed, bicubic."""
    height, width = map(int, fields["input_size"])
    red, green, blue = map(float, fields["mean"])
    red_std, green_std, blue_std = map(float, fields["std"])
    return checked(
        Preprocessing(size=(height, width), mean=(red, green, blue), std=(red_std, green_std, blue_std))
    )


def read_class_names(path: Path) -> tuple[str, ...] | None:
    """Return the names of a model's classes in the order of its logits, if its file lists them.

    Raises:
        ClipguardError: the file is missing or no safetensors, or the list is damaged.
    """
    texts, limits = weights.metadata(path), Limits()
    try:
        names = parse_json(texts[KEY], limits).get(NAMES_KEY) if KEY in texts else None
        if names is None and NAMES_KEY in texts:
            names = parse_json(texts[NAMES_KEY], limits)
        if names is None:
            return None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("no list of texts")
        if len(names) > limits.classes or max(map(len, names), default=0) > limits.name_length:
            raise ValueError("too many or too long names")
    except (ValueError, TypeError, AttributeError) as error:
        raise ClipguardError(f"model {path} has damaged class names in its header: {error}") from error
    return tuple(names)
