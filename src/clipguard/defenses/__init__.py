"""Defences to compare: clipguard, its controls, and what a user brings; one line each in `DEFENSES`."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from clipguard.defenses.clipguard import Clipguard
from clipguard.defenses.controls import Finetune, NoDefense, Retrain
from clipguard.defenses.protocol import Case, Defense, Detected, Repaired
from clipguard.defenses.rivals.abl import AntiBackdoorLearning
from clipguard.defenses.rivals.activation_clustering import ActivationClustering
from clipguard.defenses.rivals.asd import AdaptiveSplitting
from clipguard.defenses.rivals.cgd import PublishedMethod
from clipguard.defenses.rivals.confident_learning import ConfidentLearning
from clipguard.defenses.rivals.contamination import ContaminationAnalyzer
from clipguard.defenses.rivals.d_br import DistinguishAndRemove
from clipguard.defenses.rivals.distillation import AttentionDistillation
from clipguard.defenses.rivals.entropy_pruning import EntropyPruning
from clipguard.defenses.rivals.fine_pruning import FinePruning
from clipguard.defenses.rivals.finetuning import FineTuning
from clipguard.defenses.rivals.hypergradient import ImplicitUnlearning
from clipguard.defenses.rivals.neuron_pruning import NeuronPruning
from clipguard.defenses.rivals.own_scores import ClipguardScan, EarlyLoss, GuideLoss
from clipguard.defenses.rivals.prediction_shift import PredictionShift
from clipguard.defenses.rivals.sharpness_aware_tuning import SharpnessAwareTuning
from clipguard.defenses.rivals.spectral_signatures import SpectralSignatures
from clipguard.errors import ClipguardError, reason_of

DEFENSES: dict[str, Callable[..., Defense]] = {
    "none": NoDefense,
    "clipguard": Clipguard,
    "retrain": Retrain,
    "finetune": Finetune,
    "activation-clustering": ActivationClustering,
    "clipguard-scan": ClipguardScan,
    "confident-learning": ConfidentLearning,
    "early-loss": EarlyLoss,
    "guide-loss": GuideLoss,
    "psbd": PredictionShift,
    "scan-contamination": ContaminationAnalyzer,
    "spectral-signatures": SpectralSignatures,
    "ft": FineTuning,
    "nad": AttentionDistillation,
    "fp": FinePruning,
    "anp": NeuronPruning,
    "i-bau": ImplicitUnlearning,
    "ft-sam": SharpnessAwareTuning,
    "abl": AntiBackdoorLearning,
    "ep": EntropyPruning,
    "d-br": DistinguishAndRemove,
    "asd": AdaptiveSplitting,
    "cgd": PublishedMethod,
}


def defense_factory(name: str) -> Callable[..., Defense]:
    """Return what makes the defence of that name, or of `package.module:factory`, which is imported.

    Raises:
        ClipguardError: there is no such defence, or its module cannot be imported.
    """
    if name in DEFENSES:
        return DEFENSES[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        known = ", ".join(DEFENSES)
        raise ClipguardError(f"unknown defence {name!r}: give one of {known}, or package.module:factory")
    try:
        factory: Callable[..., Defense] = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # A module may raise anything while it is imported.
        raise ClipguardError(f"defence {name!r} cannot be imported: {reason_of(error)}") from error
    return factory


def foreign_defense(name: str, options: Mapping[str, Any]) -> Defense:
    """Return the defence that the user's own factory makes of its options.

    Raises:
        ClipguardError: it takes other options, or makes something that has no `defend`.
    """
    try:
        made = defense_factory(name)(**options)
    except ClipguardError:
        raise
    except (Exception, SystemExit) as error:  # So may a factory, when it is called.
        raise ClipguardError(f"defence {name!r} does not take its options: {reason_of(error)}") from error
    if not isinstance(made, Defense):
        raise ClipguardError(f"defence {name!r} made {type(made).__name__}, which has no method defend(case)")
    return made


__all__ = ["DEFENSES", "Case", "Defense", "Detected", "Repaired", "defense_factory", "foreign_defense"]
