"""Clean accuracy, attack success, robust accuracy and detection figures: what needs the truth."""

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from clipguard.lab.ground_truth import PoisonTruth
from clipguard.runs.summary import Rates
from clipguard.types import EntropyMap, ImageSet, Partition


def evaluate(
    clean_logits: Float32[np.ndarray, "n k"],
    triggered_logits: Float32[np.ndarray, "n k"] | None,
    labels: Int64[np.ndarray, "n"],
    target_labels: Int64[np.ndarray, "n"] | None,
    measured_on: str = "",
) -> Rates:
    """Return the rates of a model from its logits of the test set without and with the trigger.

    Attack success and robust accuracy are shares of the triggered samples that the trigger is to move. The
    recall is that of the target class, if the attack has exactly one. A rate of no sample is None.

    Args:
        clean_logits: of the test images as they are.
        triggered_logits: of the same images with the trigger; None without one.
        labels: true classes.
        target_labels: class that the trigger is to give each image (`Attack.target_labels`); None where it
            leads nowhere.
        measured_on: which images, in words.
    """
    predicted = clean_logits.argmax(1)
    success = robust_accuracy = recall = attack_n = None
    if target_labels is not None:
        others = labels != target_labels
        targets = np.unique(target_labels[others] if others.any() else target_labels)
        recall = _share(predicted[labels == targets] == targets) if len(targets) == 1 else None
        if triggered_logits is not None:
            attacked = triggered_logits.argmax(1)[others]
            attack_n = len(attacked) or None
            success = _share(attacked == target_labels[others])
            robust_accuracy = _share(attacked == labels[others])
    return Rates(
        measured_on=measured_on,
        accuracy=float(np.mean(predicted == labels)),
        target_recall=recall,
        attack_success=success,
        robust_accuracy=robust_accuracy,
        n=len(labels),
        attack_n=attack_n,
    )


def _share(hits: Bool[np.ndarray, "m"]) -> float | None:
    return float(np.mean(hits)) if len(hits) else None


def auroc(scores: Float[np.ndarray, "n"], positive: Bool[np.ndarray, "n"]) -> float | None:
    """Return the chance that a positive scores above a negative, ties half; None where one side is empty."""
    if positive.all() or not positive.any():
        return None
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive, scores))


def found_at(
    scores: Float[np.ndarray, "n"], positive: Bool[np.ndarray, "n"], false_positives: float
) -> float | None:
    """Return the share of positives above the threshold that this share of negatives is above, ties in part.

    A point of the ROC curve, interpolated linearly, which is what a random choice among ties gives.
    """
    if positive.all() or not positive.any():
        return None
    from sklearn.metrics import roc_curve

    fpr, tpr, _ = roc_curve(positive, scores, drop_intermediate=False)
    # At the threshold itself many positives may come at once: the highest share counts.
    last = np.flatnonzero(fpr <= false_positives)[-1]
    if last + 1 == len(fpr):
        return float(tpr[last])
    return float(np.interp(false_positives, fpr[last : last + 2], tpr[last : last + 2]))


def detection_by_scores(
    scores: Float[np.ndarray, "n"], flagged: Bool[np.ndarray, "n"] | None, truth: PoisonTruth
) -> dict[str, float | int | None]:
    """Return how well a detector's scores find the poison.

    A sample that it has no opinion on is the least suspicious one.
    """
    poisoned = truth.poisoned
    known = np.where(np.isnan(scores), -np.inf, scores)
    ranked = np.nan_to_num(known, neginf=np.min(known[np.isfinite(known)], initial=0.0) - 1)
    decided: dict[str, float | int | None] = {}
    if flagged is not None:
        decided = {
            "flagged": int(flagged.sum()),
            "flagged_recall": _share(flagged[poisoned]),
            "flagged_precision": _share(poisoned[flagged]),
            "false_positive_rate": _share(flagged[~poisoned]),
        }
    return {
        "poisoned": int(poisoned.sum()),
        "auroc_suspicion": auroc(ranked, poisoned),
        "found_at_1_percent": found_at(ranked, poisoned, 0.01),
        **decided,
    }


def detection(
    entropy: EntropyMap, partition: Partition, data: ImageSet, truth: PoisonTruth
) -> dict[str, float | int | list[int] | None]:
    """Return how well the scores and the partition find the poison: AUROCs, counts, recall and precision.

    `class_sizes`, `class_flagged` and `class_wrongly_flagged` count samples by given label: they show a class
    that is flagged as a whole.
    """
    poisoned, clean, flagged = truth.poisoned, partition.clean, partition.flagged
    return {
        "poisoned": int(poisoned.sum()),
        "auroc_guide": auroc(entropy.guide_nll, poisoned),
        "auroc_early": auroc(-entropy.early_nll, poisoned),
        "auroc_suspicion": auroc(partition.suspicion, poisoned),
        "found_at_1_percent": found_at(partition.suspicion, poisoned, 0.01),
        "clean": int(clean.sum()),
        "poison_in_clean": int((clean & poisoned).sum()),
        "flagged": int(flagged.sum()),
        "flagged_recall": _share(flagged[poisoned]),
        "flagged_precision": _share(poisoned[flagged]),
        "false_positive_rate": _share(flagged[~poisoned]),
        "class_sizes": _counts(data, np.ones(len(data), dtype=bool)),
        "class_flagged": _counts(data, flagged),
        "class_wrongly_flagged": _counts(data, flagged & ~poisoned),
    }


def _counts(data: ImageSet, mask: Bool[np.ndarray, "n"]) -> list[int]:
    counts: list[int] = np.bincount(data.labels[mask], minlength=len(data.class_names)).tolist()
    return counts
