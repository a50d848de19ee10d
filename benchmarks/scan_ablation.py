"""What each part of a scan is worth: flags with it and without it, on the scores of development draws.

    python benchmarks/scan_ablation.py [PART OF A NAME]...    # after verdict_draws.py; nothing is trained

For each draw that `verdict_draws.py` has scored: samples that are flagged, poison among them, and whether the
suspected classes are the poisoned one. Two short trainings of the cause (removal) are left out. The rows are
written to benchmarks/results/verdict/ablation.json.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from clipguard.detection.class_evidence import class_evidence, with_evidence
from clipguard.detection.entropy_map import entropy_map, first_partition
from clipguard.detection.label_flow import (
    LabelView,
    label_only_poison,
    refitted_label_flow,
)
from clipguard.detection.linear_probe import Probe
from clipguard.detection.probed_labels import probed_labels
from clipguard.detection.sample_scores import SampleScores
from clipguard.detection.trigger_detector import refine
from clipguard.lab.benchmark.machine import commit, machine
from clipguard.pipeline.config import DefenseConfig
from clipguard.seeds import Seed
from clipguard.types import Partition, State
from runners import RESULTS
from verdict_draws import Draw, development, file_of, read_scores

CONFIG: Final = DefenseConfig()
NOBODY: Final = -1


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The scores of a draw, with the linear probe and the embeddings that label flow asks for."""

    draw: Draw
    scores: SampleScores
    probe: Probe
    embeddings: np.ndarray
    poisoned: np.ndarray


def scored(draw: Draw) -> Scored:
    """Return what is kept of a draw; both tests of labels are computed anew, by the code of today."""
    scores, arrays = read_scores(file_of(draw))
    embeddings = arrays["embeddings"].astype(np.float32)
    seed = Seed(draw.seed).child("labels")
    probe, exchange, one_way = probed_labels(embeddings, scores.labels, scores.num_classes, seed)
    return Scored(
        draw=draw,
        scores=replace(scores, exchange=exchange, one_way=one_way),
        probe=probe,
        embeddings=embeddings,
        poisoned=arrays["poisoned"],
    )


def entropy_map_alone(one: Scored) -> Partition:
    """Return CGD's separation, whose candidates count as flagged, without the second axis."""
    scores = one.scores
    entropy = entropy_map(scores.guide_nll, scores.early_nll)
    return first_partition(entropy, scores.labels, scores.num_classes, CONFIG.entropy_map)


def with_probe_axis(one: Scored) -> Partition:
    """Return the same with the second axis, where the guide is weak."""
    return one.scores.first_partition(CONFIG.entropy_map)


def with_first_round(one: Scored) -> Partition:
    """Return what the first round of the trigger detector keeps."""
    return refine(with_probe_axis(one), one.scores.first_round, CONFIG.trigger_detector)


def with_detector(one: Scored) -> Partition:
    """Return what the last round keeps."""
    return refine(with_probe_axis(one), one.scores.trigger_score, CONFIG.trigger_detector)


def with_tests(one: Scored) -> Partition:
    """Return what the tests of each class leave of it, and add to it."""
    return with_evidence(
        with_detector(one), class_evidence(one.scores, CONFIG.entropy_map, CONFIG.trigger_detector)
    )


def by_label_flow(one: Scored, *, exchange: bool = True, flow: bool = True, refit: bool = True) -> Partition:
    """Return the partition in which label-only poison is flagged, too."""
    partition, scores = with_tests(one), one.scores
    tests = class_evidence(scores, CONFIG.entropy_map, CONFIG.trigger_detector)
    view = LabelView(
        labels=scores.labels,
        num_classes=scores.num_classes,
        guide_nll=scores.guide_nll,
        unexplained=~partition.has(State.TRIGGER),
    )
    targets = tests.wrong_labels & ~tests.triggered if exchange else None
    labels = label_only_poison(view, one.probe, CONFIG.label_flow, targets)
    if not flow:
        inside = (tests.wrong_labels & ~tests.triggered)[scores.labels]
        labels = labels._replace(flagged=labels.flagged & inside, excluded=labels.excluded & inside)
    if refit and labels.flagged.any():
        labels = refitted_label_flow(
            one.embeddings, view, labels, CONFIG.label_flow, Seed(one.draw.seed).child("labels")
        )
    return partition.moved(labels.excluded, State.EXCLUDED).moved(labels.flagged, State.LABEL)


def without_rounds(one: Scored) -> Partition:
    """Return the whole, with the first round's scores in place of the last's."""
    return by_label_flow(replace(one, scores=replace(one.scores, trigger_score=one.scores.first_round)))


def without_longer_training(one: Scored) -> Partition:
    """Return the whole, with early belief asked after the usual number of epochs."""
    return by_label_flow(replace(one, scores=replace(one.scores, late_nll=one.scores.early_nll)))


def without_early_belief(one: Scored) -> Partition:
    """Return the whole without the second test: no label is believed early."""
    return by_label_flow(replace(one, scores=replace(one.scores, late_nll=one.scores.guide_nll)))


PARTS: Final[dict[str, Callable[[Scored], Partition]]] = {
    "entropy map alone": entropy_map_alone,
    "+ probe axis": with_probe_axis,
    "+ detector, first round": with_first_round,
    "+ its refinements": with_detector,
    "+ tests of each class": with_tests,
    "+ label flow, exchange, second fit (the whole)": by_label_flow,
    "whole without refinements": without_rounds,
    "whole without longer training": without_longer_training,
    "whole without early belief": without_early_belief,
    "whole without label exchange": lambda one: by_label_flow(one, exchange=False),
    "whole without label flow": lambda one: by_label_flow(one, flow=False),
    "whole without second fit": lambda one: by_label_flow(one, refit=False),
}


def rows() -> Iterator[dict[str, Any]]:
    """Yield a row for each draw that was scored and each part."""
    for draw in development():
        if not file_of(draw).exists() or not all(word in draw.name for word in sys.argv[1:]):
            continue
        one = scored(draw)
        for name, part in PARTS.items():
            partition = part(one)
            flagged = partition.flagged
            by_class = np.bincount(one.scores.labels[flagged], minlength=one.scores.num_classes)
            target = draw.options.get("target", NOBODY)
            yield {
                "draw": draw.name,
                "part": name,
                "poisoned": int(one.poisoned.sum()),
                "flagged": int(flagged.sum()),
                "flagged_and_poisoned": int((flagged & one.poisoned).sum()),
                "other_classes": [int(label) for label in np.flatnonzero(by_class) if label != target],
                "poisoned_and_clean": int((partition.clean & one.poisoned).sum()),
            }


def table(results: list[dict[str, Any]]) -> str:
    """Return flagged poison and false flags of each part (columns) and draw (rows)."""
    lines = ["| draw | poisoned | " + " | ".join(PARTS) + " |", "|---" * (2 + len(PARTS)) + "|"]
    for name in dict.fromkeys(one["draw"] for one in results):
        own = {one["part"]: one for one in results if one["draw"] == name}
        cells = [
            f"{one['flagged_and_poisoned']} + {one['flagged'] - one['flagged_and_poisoned']}"
            for one in (own[part] for part in PARTS)
        ]
        lines.append(f"| {name} | {next(iter(own.values()))['poisoned']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Write all rows, and print the table."""
    results = list(rows())
    about = {
        "command": " ".join(["python benchmarks/scan_ablation.py", *sys.argv[1:]]),
        "commit": commit(),
        "machine": machine(),
    }
    path = RESULTS / "verdict" / ("-".join(["ablation", *sys.argv[1:]]) + ".json")
    path.write_text(json.dumps({**about, "rows": results}, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
