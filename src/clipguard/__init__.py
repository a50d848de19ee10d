"""Find and remove backdoors in untrusted, labelled image data sets, guided by CLIP."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipguard.clip.zero_shot import ClipGuide
    from clipguard.data import Columns, ImageSource
    from clipguard.errors import ClipguardError
    from clipguard.estimator import Defender
    from clipguard.lab.benchmark.running import run_benchmark
    from clipguard.outputs.weights import sample_weights, sampler_of
    from clipguard.pipeline.config import DefenseConfig

__version__ = "0.1.0"

_HOMES = {
    "ClipGuide": "clipguard.clip.zero_shot",
    "ClipguardError": "clipguard.errors",
    "Columns": "clipguard.data",
    "Defender": "clipguard.estimator",
    "ImageSource": "clipguard.data",
    "DefenseConfig": "clipguard.pipeline.config",
    "run_benchmark": "clipguard.lab.benchmark.running",
    "sample_weights": "clipguard.outputs.weights",
    "sampler_of": "clipguard.outputs.weights",
}
__all__ = [
    "ClipGuide",
    "ClipguardError",
    "Columns",
    "Defender",
    "DefenseConfig",
    "ImageSource",
    "run_benchmark",
    "sample_weights",
    "sampler_of",
]


def __getattr__(name: str) -> Any:
    """Return a public name on first use, so that importing the package loads no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
