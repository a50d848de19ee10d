"""What the page says, as plain values: every number on it is made here and can be tested without HTML."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Int64

from clipguard.outputs.next_steps import next_steps
from clipguard.outputs.quality import read_quality
from clipguard.outputs.report.causes import Cause, causes_of
from clipguard.outputs.report.columns import texts_of, with_losses
from clipguard.outputs.report.embedded import as_json
from clipguard.outputs.report.marks import shown_marks
from clipguard.outputs.report.pictures import images_by_id, thumbnails
from clipguard.outputs.report.plot import entropy_map
from clipguard.outputs.report.shown_samples import shown_samples
from clipguard.outputs.report.shown_triggers import EXAMPLES, shown_triggers
from clipguard.outputs.report.size import bytes_left
from clipguard.outputs.reviews import review_words
from clipguard.outputs.samples import Table, read_samples, read_texts
from clipguard.quality.issues import ISSUES
from clipguard.runs import RunFolder
from clipguard.runs.cleaning import cleaning_of
from clipguard.runs.summary import RunSummary, read_summary
from clipguard.types import STATES, Partition

MARKED: Final = 100
"""How many of the most suspicious samples are points on the map."""

TWELVE: Final = 12
"""How many samples stand for a cause."""

QUALITY_LISTED: Final = 10
"""How many samples are listed with each issue of data quality."""

CLASSES: Final = 40
"""How many classes are listed, most flagged first."""

CAUSE_CLASSES: Final = 5
"""How many classes are named of a cause, those with most samples."""

_CAUSE_BYTES: Final = 300_000


def summarize(run_dir: Path | str) -> dict[str, Any]:
    """Return what the page says about a finished run, in bounded size.

    Keys: `run` (a `RunSummary`) and, as JSON values, `manifest`, `n`, `flagged` (number), `statuses`,
    `classes` (`listed` and `others`), `map` (see `entropy_map`), `samples` (see `shown_samples`; thumbnails
    as data URIs), `causes` (the flagged samples in groups), `triggers` (each reconstructed trigger, alone and
    put on clean samples), `quality` (issues by kind), `marks` (see `shown_marks`; `reviewed` says what they
    did), `cleaned` (when `clean` dropped the pictures; else None) and `steps` (what to do next).

    Raises:
        ClipguardError: no run folder, a run that is not finished or of another version, or damaged files.
    """
    folder = RunFolder.read(run_dir)
    run = read_summary(folder.path)
    table, partition = read_samples(folder.path, order="table")
    table = with_losses(folder.path, table)
    names = _class_names(folder.path, table["label"])
    order = np.argsort(table["rank"], kind="stable").astype(np.int64)
    causes = causes_of(run.verdict.findings, partition, table["label"], table["rank"])
    flagged = int(partition.flagged.sum())
    marks = shown_marks(folder.path, run.reviews)
    least = order[partition.clean[order]][::-1][:EXAMPLES]
    cleaning = cleaning_of(folder.path)
    pictured = _pictured(folder, table, partition, causes, least, len(as_json(marks)))
    return {
        "run": run,
        "manifest": folder.manifest,
        "n": len(partition),
        "quality": _quality(folder.path, run),
        "flagged": flagged,
        "statuses": _statuses(partition),
        "classes": _classes(table["label"], partition, run.few_clean, names),
        "map": entropy_map(
            table["guide_rank"],
            table["early_rank"],
            partition,
            marked=order[:MARKED],
            marked_as=f"the {len(order[:MARKED])} most suspicious samples",
        ),
        "cleaned": None if cleaning is None else cleaning.at,
        "marks": marks,
        "reviewed": review_words(run.reviews),
        **pictured,
        "causes": [
            {**described, **_classes_of(cause, table["label"], names)}
            for described, cause in zip(pictured["causes"], causes, strict=True)
        ],
        "steps": [step._asdict() for step in next_steps(run, folder.manifest, flagged)],
    }


def _quality(run: Path, summary: RunSummary) -> list[dict[str, Any]]:
    """Return each kind of issue with its title, meaning and number, and the clearest samples with it."""
    if summary.quality is None:
        return []
    clearest = read_quality(run, QUALITY_LISTED)
    return [
        {
            "title": ISSUES[kind].title,
            "meaning": ISSUES[kind].meaning,
            "count": summary.quality.counts.get(kind, 0),
            "issues": issues,
        }
        for kind, issues in clearest.items()
    ]


def _pictured(
    folder: RunFolder,
    table: Table,
    partition: Partition,
    causes: Sequence[Cause],
    least: Int64[np.ndarray, "l"],
    other_bytes: int,
) -> dict[str, Any]:
    """Return all that has pictures: `samples`, `causes` and `triggers`, and the `rows` of these samples.

    Pictures leave place for `other_bytes` more.
    """
    rows, samples = shown_samples(folder.path, table, partition, causes)
    clean = texts_of(folder.path, least)["id"]
    images = images_by_id({sample["id"] for sample in samples} | set(clean), folder)
    triggers = shown_triggers([images[name] for name in clean if name in images], partition, folder)
    place_of = {row: place for place, row in enumerate(rows.tolist())}
    described = [_cause(cause, place_of) for cause in causes]
    stood = [images.get(samples[place]["id"]) for one in described for place in one["places"]]
    standing = iter(thumbnails(stood, _CAUSE_BYTES))
    for one in described:
        one["examples"] = [samples[place] | {"thumbnail": next(standing)} for place in one.pop("places")]
    spent = [example["thumbnail"] or "" for one in described for example in one["examples"]]
    spent += [uri for one in triggers for example in one["examples"] for uri in example.values()]
    spent += [
        uri for one in triggers for uri in (one["alone"], one["scale"]["picture"], one["shift"]["picture"])
    ]
    limit = bytes_left(samples, sum(map(len, spent)) + other_bytes)
    uris = thumbnails([images.get(sample["id"]) for sample in samples], limit)
    for sample, uri in zip(samples, uris, strict=True):
        sample["thumbnail"] = uri
    return {"rows": rows.tolist(), "samples": samples, "causes": described, "triggers": triggers}


def _statuses(partition: Partition) -> dict[str, dict[str, Any]]:
    """Return for each status its samples, their share, and how many have each reason."""
    statuses: dict[str, dict[str, Any]] = {}
    for name in STATES.values():
        entry = statuses.setdefault(name.status, {"count": 0, "share": 0.0, "reasons": {}})
        count = partition.counts[name.counted_as]
        entry["count"] += count
        entry["share"] = entry["count"] / max(1, len(partition))
        if name.reason and count:
            entry["reasons"][name.reason] = count
    return statuses


def _class_names(run: Path, given: Int64[np.ndarray, "n"]) -> dict[int, str]:
    """Return the names of all classes that have samples, read in one go."""
    labels, first = np.unique(given, return_index=True)
    return dict(zip(labels.tolist(), read_texts(run, first)["given_label"], strict=True))


def _classes(
    given: Int64[np.ndarray, "n"], partition: Partition, few_clean: Sequence[str], names: dict[int, str]
) -> dict[str, Any]:
    """Return the classes by their flagged share, and how many more there are than are listed."""
    labels, sizes = np.unique(given, return_counts=True)
    flagged = np.bincount(np.searchsorted(labels, given[partition.flagged]), minlength=len(labels))
    order = np.lexsort((labels, -flagged / sizes))[:CLASSES]
    listed = [
        {
            "name": names[int(labels[c])],
            "size": int(sizes[c]),
            "flagged": int(flagged[c]),
            "share": float(flagged[c] / sizes[c]),
            "few_clean": names[int(labels[c])] in few_clean,
        }
        for c in order
    ]
    return {"listed": listed, "others": len(labels) - len(listed)}


def _cause(cause: Cause, place_of: dict[int, int]) -> dict[str, Any]:
    """Return how many samples a cause has, and the places of the first ones on the page."""
    listed = [place_of[row] for row in cause.rows.tolist() if row in place_of]
    return {
        "kind": cause.kind,
        "finding": cause.finding,
        "trigger": cause.trigger,
        "count": len(cause.rows),
        "listed": len(listed),
        "places": listed[:TWELVE],
    }


def _classes_of(cause: Cause, labels: Int64[np.ndarray, "n"], names: dict[int, str]) -> dict[str, Any]:
    """Return the classes that most samples of a cause are in, and how many more there are."""
    classes, counts = np.unique(labels[cause.rows], return_counts=True)
    most = np.argsort(-counts, kind="stable")[:CAUSE_CLASSES]
    return {
        "classes": [[names[int(classes[at])], int(counts[at])] for at in most],
        "other_classes": len(classes) - len(most),
    }
