"""What was chosen otherwise than by default, by name: enough for another command to do the same."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from clipguard.clip.zero_shot import ClipGuide
from clipguard.compute.recipes import SmallNetConfig
from clipguard.data.source import Opened
from clipguard.detection.net_configs import EARLY_MODELS
from clipguard.pipeline.config import DefenseConfig
from clipguard.pipeline.scan import Context
from clipguard.safety.limits import Limits

_DEFAULT: Final = DefenseConfig()
_USUAL: Final[dict[str, Any]] = {
    "guide": ClipGuide().name,
    "template": [],
    "logit_scale": True,
    "limits": {},
    "early_model": "shallow",
    "rank_within": _DEFAULT.entropy_map.by,
    "power": _DEFAULT.power,
    "seed": _DEFAULT.seed,
    "quality": True,
}
"""The defaults; of what is not here, None."""


def chosen_options(context: Context) -> dict[str, Any]:
    """Return as JSON values what is not as by default; settings that have no name of their own are left out.

    What the data were opened with is known of a path alone.
    """
    source, guide, config = context.source, context.guide, context.config
    chosen = {
        "guide": guide.name,
        "second_guide": context.second_guide and context.second_guide.name,
        "template": list(guide.templates or ()),
        "logit_scale": guide.use_logit_scale,
        **({} if source.opened is None else _of_source(source.opened, source.class_names)),
        "size": None if config.size is None else "x".join(map(str, config.size)),
        "early_model": _early_model(config.early_model),
        "rank_within": config.entropy_map.by,
        "embeddings": context.embeddings_from and str(context.embeddings_from),
        "quality": context.quality,
        "power": config.power,
        "seed": config.seed,
        "baseline": context.baseline and str(context.baseline),
    }
    return {name: value for name, value in chosen.items() if value not in (None, _USUAL.get(name))}


def _of_source(opened: Opened, class_names: Sequence[str]) -> dict[str, Any]:
    """Return how a path was opened; class names that were given in Python are listed."""
    usual, classes = asdict(Limits()), opened.classes
    return {
        "classes": str(classes) if isinstance(classes, (str, Path)) else classes and list(class_names),
        "rows": None if opened.rows is None else "{}:{}".format(*opened.rows),
        "limits": {name: value for name, value in asdict(opened.limits).items() if value != usual[name]},
        **{f"{role}_column": name for role, name in asdict(opened.columns).items()},
    }


def _early_model(config: SmallNetConfig) -> str | None:
    """Return the name of a choice of early-training model; None for one that has none."""
    for name, known in EARLY_MODELS.items():
        if config == known:
            return name
    alone = replace(EARLY_MODELS["cgd"], architecture=config.architecture, runs=1)
    return config.architecture if config == alone else None
