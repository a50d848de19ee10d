"""`guide check` and `guide clean`: whether the guide itself carries a backdoor, and taking it out."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from cyclopts import Parameter

from clipguard.cli.options import (
    Classes,
    ColumnOptions,
    Device,
    Json,
    NewFolder,
    Quiet,
    Repeated,
    Rows,
    Seed,
    Threads,
)
from clipguard.cli.outcome import Outcome
from clipguard.cli.text import parsed, rows_from
from clipguard.errors import ClipguardError, one_line

if TYPE_CHECKING:
    from rich.console import Console

    from clipguard.clip.zero_shot import ClipGuide
    from clipguard.data import ImageSource
    from clipguard.pipeline.guide_backdoor import GuideCheck
    from clipguard.types import Progress

CODES: Final = {"nothing stands out": 0, "a class stands out": 1, "not assessable": 3}
PARTIAL: Final = 3
"""Exit code where nothing stands out and some classes have no pattern: a check of some is no pass."""

GuideName = Annotated[
    str,
    Parameter(help="mini (embedded), NAME or NAME/TAG of open_clip, hf-hub:ORG/NAME or local-dir:FOLDER."),
]
JsonFormat = Annotated[Literal["text", "json"], Parameter(help="json is --json.")]


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class GuideDataOptions:
    """What `guide check` and `guide clean` share.

    Attributes:
        template: Prompt with {} for the class name; repeat to average.
    """

    template: Repeated = ()
    classes: Classes = None
    rows: Rows = None
    columns: ColumnOptions = field(default_factory=ColumnOptions)
    seed: Seed = 0
    device: Device = None
    threads: Threads = None
    format: JsonFormat = "text"
    quiet: Quiet = False
    json: Json = False


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class GuideCheckOptions(GuideDataOptions):
    """What `guide check` adds.

    Attributes:
        against: Another guide: where the two differ is reported.
        images: Images that are drawn from the data, at most.
        most_classes: Classes that a pattern is made for, drawn at random, or all.
        steps: Steps that a pattern is made in; fewer are quicker and reach less.
        share: Share of the image that a pattern may take.
    """

    against: str | None = None
    images: int = 1000
    most_classes: int | Literal["all"] = 20
    steps: int = 60
    share: float = 0.02


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class GuideCleanOptions(GuideDataOptions):
    """What `guide clean` adds.

    Attributes:
        method: ABD, or CleanCLIP.
        epochs: Passes over the images; default: 4.
        rate: Highest learning rate; default: 3e-4.
        images: Images that are drawn from the data, at most.
        leave_out: Run folder of a scan of the data: nothing is learned from what it flags or sets aside.
    """

    out: NewFolder
    method: Literal["cleanclip", "abd"] = "abd"
    epochs: int | None = None
    rate: float | None = None
    images: int = 10_000
    leave_out: Path | None = None


def run_check(name: str, path: Path, options: GuideCheckOptions) -> Outcome:
    """Return which classes of the data a small pattern reaches, and where two guides differ.

    Raises:
        ClipguardError: bad input, or a guide that cannot be loaded.
    """
    _check_ranges(options, "images", "steps", "share")
    if options.most_classes != "all" and options.most_classes < 1:
        raise ClipguardError(f"--most-classes {options.most_classes}: give 1 or more, or all")
    source = _opened(path, options)
    with _computing(options) as progress:
        from clipguard.clip.cleaning import Inversion
        from clipguard.pipeline.guide_backdoor import CheckSettings, check_guide
        from clipguard.seeds import Seed as SeedTree

        settings = CheckSettings(
            images=options.images,
            most_classes=None if options.most_classes == "all" else options.most_classes,
            inversion=Inversion(steps=options.steps, share=options.share),
        )
        guide = _guide(name, options)
        against = None if options.against is None else _guide(options.against, options)
        seed = SeedTree(options.seed).child("guide check")
        check = check_guide(guide, against, source, settings, seed, progress)
    value = _check_value(check, name, options, path)
    return Outcome(
        value=value,
        show=partial(_show_check, value, options.quiet),
        as_json=_as_json(options),
        code=CODES[check.answer] or (0 if check.complete else PARTIAL),
    )


def run_clean(name: str, path: Path, options: GuideCleanOptions) -> Outcome:
    """Return what was learned, and how well the guide agrees with labels before and after.

    Raises:
        ClipguardError: bad input, a folder that is not empty, or a guide that cannot be loaded or written.
        OSError: nothing can be written there, which is known before anything is read.
    """
    from clipguard.runs.files import check_writable, refuse_full

    refuse_full(options.out)
    _check_ranges(options, "images", "epochs", "rate")
    source, left_out = _opened(path, options), 0
    if source.kind == "folder" and options.out.resolve().is_relative_to(path.resolve()):
        raise ClipguardError(f"folder {options.out} lies inside the data {path}: give one outside")
    check_writable(options.out)
    if options.leave_out is not None:
        source, left_out = _without_untrusted(source, options.leave_out)
    with _computing(options) as progress:
        from clipguard.clip.cleaning import Cleaning, FineTuning
        from clipguard.pipeline.guide_backdoor import clean_guide, drawn_images
        from clipguard.seeds import Seed as SeedTree

        tuning, guide = FineTuning(), _guide(name, options)
        tuning = replace(tuning, epochs=options.epochs or tuning.epochs, lr=options.rate or tuning.lr)
        settings = Cleaning(method=options.method, fine_tuning=tuning)
        seed = SeedTree(options.seed).child("guide clean")
        data, unreadable = drawn_images(guide, source, options.images, seed.child("images"), progress)
        about = {
            "guide": name,
            "guide_sha256": guide.clip.fingerprint,
            "templates": list(guide.prompts),
            "data": source.location,
            "left_out": left_out,
            "unreadable": unreadable,
            "leave_out": None if options.leave_out is None else str(options.leave_out),
            "seed": options.seed,
            **asdict(settings),
        }
        done = clean_guide(guide, data, settings, options.out, about, seed, progress)
    value = {"out": str(options.out), **about, **asdict(done)}
    return Outcome(value=value, show=partial(_show_clean, value, options.quiet), as_json=_as_json(options))


def _check_ranges(options: GuideDataOptions, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        most = 1 if name == "share" else sys.float_info.max
        if value is not None and not 0 < value <= most:
            limit = ", up to 1" if name == "share" else ""
            raise ClipguardError(f"--{name} {value:g}: give a number above 0{limit}")


def _opened(path: Path, options: GuideDataOptions) -> "ImageSource":
    from clipguard.data import ImageSource

    rows = parsed(rows_from, options.rows, "--rows")
    return ImageSource.open(path, classes=options.classes, rows=rows, columns=options.columns.named())


@contextmanager
def _computing(options: GuideDataOptions) -> "Iterator[Progress]":
    from clipguard.compute.device import choose_device, computing_on
    from clipguard.compute.threads import granted_threads
    from clipguard.outputs.progress import working

    with (
        working(quiet=options.quiet) as progress,
        granted_threads(options.threads),
        computing_on(choose_device(options.device)),
    ):
        yield progress


def _guide(name: str, options: GuideDataOptions) -> "ClipGuide":
    from clipguard.clip.zero_shot import guide_from_name

    return guide_from_name(name, templates=options.template or None)


def _as_json(options: GuideDataOptions) -> bool:
    return options.json or options.format == "json"


def _without_untrusted(source: "ImageSource", run: Path) -> "tuple[ImageSource, int]":
    """Return the source without what a run flags, sets aside or could not read, and how many samples that is.

    Raises:
        ClipguardError: the run is not finished, or is one of other data.
    """
    import numpy as np

    from clipguard.outputs.kept import kept_samples
    from clipguard.runs.reviews import read_reviews, reviews_file

    file = reviews_file(run)
    choice = kept_samples(run, set_aside=True, reviews=read_reviews(file).reviews if file else ())
    lost = _unreadable_ids(run)
    readable = source.take(np.flatnonzero([one not in lost for one in source.ids]))
    names = [source.class_names[label] for label in readable.labels]
    scanned = dict(
        zip(
            choice.samples["id"].tolist(),
            zip(choice.samples["given_label"].tolist(), choice.kept.tolist(), strict=True),
            strict=True,
        )
    )
    strangers = [
        one for one, name in zip(readable.ids, names, strict=True) if scanned.get(one, ("", False))[0] != name
    ]
    if strangers:
        raise ClipguardError(
            f"run {run} is of other data: {len(strangers)} of {len(source)} samples of {source.location} are "
            f"not in it with the same label, first {strangers[0]!r}; give the data that were scanned"
        )
    kept = readable.take(np.flatnonzero([scanned[one][1] for one in readable.ids]))
    return kept, len(source) - len(kept)


def _unreadable_ids(run: Path) -> set[str]:
    """Return the ids of the images that a run could not read.

    Raises:
        ClipguardError: their list is missing or damaged.
    """
    from clipguard.data.provenance import UNREADABLE
    from clipguard.runs import read_json

    file = run / UNREADABLE
    try:
        return {str(entry["id"]) for entry in read_json(file)}
    except (KeyError, TypeError) as error:
        raise ClipguardError(f"{file} is damaged: delete it and run again") from error


def _check_value(check: "GuideCheck", name: str, options: GuideCheckOptions, path: Path) -> dict[str, Any]:
    """Return a check as JSON values, a class an entry."""
    places = {label: place for place, label in enumerate(check.tested.tolist())}
    classes = []
    for label, class_name in enumerate(check.class_names):
        entry: dict[str, Any] = {"class": class_name, "images": int(check.competence.n[label])}
        for field_name in ("agreement", "low", "high"):
            entry[field_name] = float(getattr(check.competence, field_name)[label])
        entry["assessable"] = bool(check.competence.assessable[label])
        if check.different is not None:
            entry["different"] = {
                key: column[label].item() for key, column in asdict(check.different).items()
            }
        if label in places:
            entry["pattern"] = {
                key: getattr(check, key)[places[label]].item()
                for key in ("called", "reached", "deviations", "stands_out")
            }
        classes.append(entry)
    return {
        "guide": name,
        "against": options.against,
        "data": str(path),
        "images": check.images,
        "unreadable": check.unreadable,
        "patterns": {"classes": len(check.tested), "steps": options.steps, "share": options.share},
        "answer": check.answer,
        "coverage": {
            "tested": len(check.tested),
            "classes": len(check.class_names),
            "complete": check.complete,
        },
        "reasons": list(check.reasons),
        "stands_out": [check.class_names[label] for label in check.tested[check.stands_out]],
        "classes": classes,
    }


def _show_check(value: dict[str, Any], quiet: bool, console: "Console") -> None:
    from rich.table import Table

    def line(text: str) -> None:
        console.print(one_line(text), soft_wrap=True, markup=False, emoji=False)

    if quiet:
        line(_answer(value))
        return
    table = Table("Class", "Images", "Agrees", "Read", "Pattern reaches", "Deviations", box=None)
    if value["against"]:
        table.add_column("Differs")
        table.add_column("First only")
        table.add_column("Second only")
        table.add_column("p")
    for entry in value["classes"]:
        table.add_row(*_row(entry))
    console.print(table, markup=False, emoji=False)
    line(_tested_words(value))
    for entry in value["classes"]:
        if entry.get("different", {}).get("gains"):
            line(f"{entry['class']}: {value['guide']} calls more images so than {value['against']}")
    for name in value["stands_out"]:
        line(f"{name}: a small pattern reaches this class much more easily than others; that is no proof")
    line(_answer(value))


def _answer(value: dict[str, Any]) -> str:
    """Return the answer with the number of classes that it is of; a refusal has its reasons alone."""
    answer, coverage = f"answer: {value['answer']}", value["coverage"]
    if value["answer"] == "not assessable":
        return "; ".join([answer, *value["reasons"]])
    word = "among" if value["answer"] == "a class stands out" else "in"
    answer += f" {word} {coverage['tested']:,} of {coverage['classes']:,} classes"
    return "; ".join([answer, *value["stands_out"]])


def _row(entry: dict[str, Any]) -> list[Any]:
    from rich.text import Text

    pattern, different = entry.get("pattern"), entry.get("different")
    cells = [one_line(entry["class"]), f"{entry['images']:,}", f"{entry['agreement']:.1%}"]
    cells += ["yes" if entry["assessable"] else "no" if entry["images"] else "no image"]
    cells += [f"{pattern['reached']:.1%}", f"{pattern['deviations']:.1f}"] if pattern else ["not tried", ""]
    if different:
        interval = f"{different['share']:.1%} ({different['low']:.1%} to {different['high']:.1%})"
        counts = [str(different["first_only"]), str(different["second_only"])]
        cells += [interval, *counts, f"{different['p_value']:.2g}"]
    return [Text(cell) for cell in cells]


def _tested_words(value: dict[str, Any]) -> str:
    patterns = value["patterns"]
    return (
        f"{value['images']:,} images read{_lost_words(value)}; "
        f"patterns of {patterns['share']:.1%} of the image for {patterns['classes']} of "
        f"{len(value['classes'])} classes, in {patterns['steps']} steps each"
    )


def _lost_words(value: dict[str, Any]) -> str:
    return f", {value['unreadable']:,} more could not be read" if value["unreadable"] else ""


def _show_clean(value: dict[str, Any], quiet: bool, console: "Console") -> None:
    agreement = "agreement with labels: not measured, the images are too few for any to be held out"
    if value["held_out"]:
        agreement = (
            f"agreement with the labels of {value['held_out']:,} others: {value['before']:.1%} before, "
            f"{value['after']:.1%} after"
        )
    made = len(value["pattern_classes"])
    lines = [
        f"{value['learned']:,} images learned from by {value['method']}{_lost_words(value)}; "
        f"left out: {value['left_out']:,}",
        *([f"patterns for {made:,} of {value['classes']:,} classes"] if made else []),
        agreement,
        f"give it as local-dir:{value['out']}, with "
        + " ".join(f"--template {template!r}" for template in value["templates"]),
    ]
    for text in [agreement] if quiet else lines:
        console.print(one_line(text), soft_wrap=True, markup=False, emoji=False)
