"""What a run says of itself: verdict, warnings, rates without a test set, and summary.json."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Int64

from clipguard import __version__
from clipguard.compute.device import CPU, current_device
from clipguard.compute.inference import classifier_logits
from clipguard.data.listing import skipped_words
from clipguard.data.provenance import recorded_source
from clipguard.detection.entropy_map import TOGETHER, classes_with_few_clean
from clipguard.models.spec import Normalized
from clipguard.pipeline.baseline import since_baseline
from clipguard.pipeline.guide_check import coinciding_names, disagreement, of_prompts, of_second_guide
from clipguard.pipeline.model_card import write_model_card
from clipguard.pipeline.quality_stage import read_counts
from clipguard.pipeline.scan import Scan
from clipguard.pipeline.stages import STAGES
from clipguard.pipeline.verdict import agreement, competence, unreadable
from clipguard.runs import write_json
from clipguard.runs.summary import (
    SUMMARY,
    DataSummary,
    GuideSummary,
    QualitySummary,
    Rates,
    RunSummary,
    StageSummary,
    plain,
)
from clipguard.types import Rows, State, chunks

if TYPE_CHECKING:
    from clipguard.pipeline.defender import Defender

SMALL_TRIGGER: Final = 1.5
"""Ratio of image size to seen size from which small triggers leave no trace."""


def few_clean(scan: Scan) -> tuple[str, ...]:
    """Return the names of classes with too few clean samples to trust what is learnt of them."""
    return classes_with_few_clean(scan.partition.clean, scan.data.labels, scan.data.class_names)


def warnings_of(scan: Scan) -> list[str]:
    """Return what a user should know of a scan, one sentence each."""
    context = scan.context
    warnings = [
        *context.guide.warnings_for(context.source.class_names),
        *coinciding_names(scan),
        *disagreement(scan),
    ]
    warnings += [*_data_warnings(scan), *context.notes(), *(current_device() or CPU).passed_over]
    return warnings + [
        f"the weights of guide {guide.name} are not known to clipguard: compare their sha256 "
        f"{guide.clip.fingerprint} with one from somebody you trust"
        for guide in (context.guide, context.second_guide)
        if guide is not None and guide.weights_verified_by is None
    ]


def _pixel_warnings(recorded: dict[str, Any]) -> Iterator[str]:
    bits, transparent = recorded["grey_bits"], recorded["transparent"]
    if bits.keys() - {"16"}:
        words = ", ".join(f"{count} by {number}" for number, count in bits.items())
        yield f"images with 16 bits of grey are scaled by the bits in use, each by its own: {words}"
    if transparent:
        yield (
            f"{transparent:,} images have transparent pixels: they are read without transparency, as "
            "training tools read them, and look otherwise in a viewer"
        )


def _data_warnings(scan: Scan) -> list[str]:
    source = scan.context.source
    out = list(source.notes)
    if left := skipped_words(source.skipped):
        out.append(f"{left}: docs/inputs.md says what is read")
    if empty := source.empty_classes:
        out.append(f"{len(empty)} classes have no image: {', '.join(empty[:5])}")
    if lost := _lost_classes(scan):
        out.append(f"{len(lost)} classes have no readable image: {', '.join(lost[:5])}")
    recorded = recorded_source(scan.context.finished["embeddings"].path)
    out += _pixel_warnings(recorded)
    largest = recorded["largest"]
    view = scan.data.images.shape[1:3]
    if max(largest) > SMALL_TRIGGER * max(view):
        lost = -(-max(largest) // max(view))
        out.append(
            f"images of up to {largest[0]} x {largest[1]} are read at {view[0]} x {view[1]}: a trigger of "
            f"under {lost} pixels a side leaves no trace there; a larger size looks for it"
        )
    if few := few_clean(scan):
        out.append(f"{len(few)} classes have too few clean samples to trust: {', '.join(few[:5])}")
    if skipped := unreadable(scan):
        out.append(
            f"{len(skipped)} images could not be read and were skipped, first {skipped[0]['id']!r} "
            f"({skipped[0]['reason']}); unreadable.json in the run folder lists them all"
        )
    return out


def _lost_classes(scan: Scan) -> list[str]:
    """Return the classes that have images, none of which can be read."""
    k = scan.num_classes
    before, left = (np.bincount(part.labels, minlength=k) for part in (scan.context.source, scan.data))
    return [scan.data.class_names[label] for label in np.flatnonzero((before > 0) & (left == 0))]


def own_rates(defender: "Defender") -> tuple[Rates, Rates]:
    """Return accuracies before and after without a test set, with what they were measured on.

    A victim trained here is measured on the held-out samples that the scan calls clean. A given model was
    trained on all of the data: so its rates are of samples that it has learned, and say so.
    """
    scan = defender.trained_on_
    held_out = scan.partition.has(State.HELD_OUT)
    where = defender.partition_.clean & (held_out if held_out.any() else True)
    rows = np.flatnonzero(where)
    if not len(rows):
        nothing = Rates(measured_on="nothing: no clean sample")
        return nothing, nothing
    kind = "held-out" if held_out.any() else "training"
    words = f"{len(rows)} {kind} samples that the scan trusts, by their given labels"
    rates = []
    for model in (defender.before_, defender.model_):
        accuracy = float(np.mean(_classes(model, scan.data.images, rows) == scan.data.labels[rows]))
        rates.append(Rates(accuracy=accuracy, measured_on=words, n=len(rows)))
    return rates[0], rates[1]


def _classes(model: Normalized, images: Rows, rows: Int64[np.ndarray, "m"]) -> Int64[np.ndarray, "m"]:
    """Return the class that the model gives each image of `rows`, some of which are in memory at a time."""
    parts = (images[rows[part]] for part in chunks(len(rows), TOGETHER))
    return np.concatenate([classifier_logits(model, some).argmax(1) for some in parts])


def _quality(scan: Scan) -> QualitySummary | None:
    stage = scan.context.finished.get("quality")
    return None if stage is None else read_counts(stage.path)


def write_summary(  # noqa: PLR0913  # what the command knows and the defender does not
    defender: "Defender",
    command: str,
    *,
    files: Mapping[str, str],
    model: str | None = None,
    before: Rates | None = None,
    after: Rates | None = None,
    detection: dict[str, Any] | None = None,
) -> RunSummary:
    """Return the run's summary, now published in summary.json."""
    scan, run = defender.scan_, defender.scan_.context.run
    titles = {stage.name: stage.title for stage in STAGES}
    summary = RunSummary(
        command=command,
        version=__version__,
        seed=run.manifest["seed"],
        threads=run.manifest["threads"],
        device=run.manifest["device"],
        run_dir=str(run.path),
        verdict=defender.verdict_,
        data=DataSummary(
            location=run.manifest["source"]["location"],
            n=len(scan.data),
            classes=list(scan.data.class_names),
            empty_classes=list(scan.context.source.empty_classes),
            unreadable=len(unreadable(scan)),
            size=scan.data.images.shape[1:3],
            skipped=dict(scan.context.source.skipped),
        ),
        guide=GuideSummary(
            name=scan.guide.source,
            scale=scan.guide.scale,
            agreement=agreement(scan),
            competence=competence(scan),
            second=of_second_guide(scan),
            prompts=of_prompts(scan),
        ),
        partition=scan.partition.counts,
        few_clean=list(few_clean(scan)),
        stages={
            name: StageSummary(title=titles[name], seconds=round(stage.seconds, 2))
            for name, stage in defender.stages_.items()
        },
        warnings=defender.warnings_,
        files=dict(files),
        model=model,
        before=before,
        after=after,
        quality=_quality(scan),
        detection=detection,
        baseline=since_baseline(scan, defender.verdict_),
        reviews=scan.reviews,
    )
    if after is not None:
        write_model_card(defender, before, after)
    with run.publishing(SUMMARY) as path:
        write_json(path, plain(summary))
    return summary
