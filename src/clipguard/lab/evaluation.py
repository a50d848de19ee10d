"""Clean accuracy, attack success, robust_accuracy and detection figures: what needs the truth."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64
from scipy.stats import rankdata

from clipguard.lab.ground_truth import PoisonTruth
from clipguard.types import EntropyMap, ImageSet, Split


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """Rates of one model on one test set, as fractions.

    Attributes:
        accuracy: clean accuracy (CA).
        target_recall: clean accuracy on the class that all samples are mapped_labels at which are mapped_labels at another
            class than their own; None where there is no such class or the test set has none of it.
        attack_success: attack success rate (ASR): of the triggered samples that are mapped_labels at another class
            than their own, those that are given it; None without a trigger or without such samples.
        robust_accuracy: of the same samples, those that are given their true class; None likewise.
        n: clean test samples.
        attack_n: triggered samples that `attack_success` and `robust_accuracy` are rates of; None likewise.
    """

    accuracy: float
    target_recall: float | None
    attack_success: float | None
    robust_accuracy: float | None
    n: int
    attack_n: int | None


def evaluate(
    clean_logits: Float32[np.ndarray, "n k"],
    triggered_logits: Float32[np.ndarray, "n k"] | None,
    labels: Int64[np.ndarray, "n"],
    target_labels: Int64[np.ndarray, "n"] | None,
) -> EvalResult:
    """Return the rates of a model from its logits of the test set without and with the trigger.

    Args:
        clean_logits: of the test images as they are.
        triggered_logits: of the same images with the trigger; None without one.
        labels: true classes.
        target_labels: class that the trigger is to send each image to (`Attack.target_labels`); None without any target_labels.
    """
    predicted = clean_logits.argmax(1)
    success = robust_accuracy = recall = attacked_n = None
    if target_labels is not None:
        others = labels != target_labels
        led = np.unique(target_labels[others] if others.any() else target_labels)
        recall = _share(predicted[labels == led] == led) if len(led) == 1 else None
    if triggered_logits is not None and target_labels is not None:
        others = labels != target_labels
        attacked = triggered_logits.argmax(1)[others]
        attacked_n = len(attacked) or None
        success, robust_accuracy = (
            _share(attacked == target_labels[others]),
            _share(attacked == labels[others]),
        )
    return EvalResult(
        accuracy=float(np.mean(predicted == labels)),
        target_recall=recall,
        attack_success=success,
        robust_accuracy=robust_accuracy,
        n=len(labels),
        attack_n=attacked_n,
    )


def _share(hits: Bool[np.ndarray, "m"]) -> float | None:
    return float(np.mean(hits)) if len(hits) else None


def auroc(scores: Float[np.ndarray, "n"], positive: Bool[np.ndarray, "n"]) -> float | None:
    """Return the chance that a positive scores above a negative, ties half; None where one side is empty."""
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if positives == 0 or negatives == 0:
        return None
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def detection(
    entropy: EntropyMap, split: Split, data: ImageSet, truth: PoisonTruth
) -> dict[str, float | int | list[int] | None]:
    """Return how well the axes and the split tell the poison: AUROCs, counts, recall and precision.

    `class_sizes`, `class_triggered` and `class_wrongly_triggered` count samples by given label: they show a
    class that is flagged as a whole.
    """
    poisoned = truth.poisoned
    hits = int((split.triggered & poisoned).sum())
    flagged, total = int(split.triggered.sum()), int(poisoned.sum())
    return {
        "poisoned": total,
        "auroc_guide": auroc(entropy.guide_nll, poisoned),
        "auroc_suspect": auroc(-entropy.early_nll, poisoned),
        "auroc_suspicion": auroc(split.suspicion, poisoned),
        "clean": int(split.clean.sum()),
        "poison_in_clean": int((split.clean & poisoned).sum()),
        "triggered": flagged,
        "triggered_recall": hits / total if total else None,
        "triggered_precision": hits / flagged if flagged else None,
        "class_sizes": _counts(data, np.ones(len(data), dtype=bool)),
        "class_triggered": _counts(data, split.triggered),
        "class_wrongly_triggered": _counts(data, split.triggered & ~poisoned),
    }


def _counts(data: ImageSet, of: Bool[np.ndarray, "n"]) -> list[int]:
    counts: list[int] = np.bincount(data.labels[of], minlength=len(data.class_names)).tolist()
    return counts
