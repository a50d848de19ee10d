"""`convert`: a BackdoorBench record to a folder such as `attack` writes, with the record's model."""

import shlex
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from clipguard.cli.options import ConvertOptions
from clipguard.cli.outcome import Outcome
from clipguard.cli.poisoned import (
    MODEL,
    READ_IMAGES,
    READ_TEST_IMAGES,
    TEST,
    TRAIN,
    TRIGGERED,
    show_attack,
    write_attack,
)
from clipguard.data import Columns, ImageSource, columns_of_test
from clipguard.data.decode import read_images
from clipguard.errors import ClipguardError, one_line
from clipguard.lab.backdoorbench import Record, poisoned_by, read_record, triggered_by
from clipguard.models.nets import NORMALISATIONS
from clipguard.outputs.progress import working
from clipguard.runs.files import refuse_full
from clipguard.types import ImageSet, Preprocessing, StepProgress

if TYPE_CHECKING:
    from rich.console import Console

NETS: Final = {"preactresnet18": "clipguard.models.nets:BackdoorBenchResNet"}
"""What a record calls its net, and the factory of it."""


def run_convert(folder: Path, options: ConvertOptions) -> Outcome:
    """Return what was written into the folder `options.out`.

    Raises:
        ClipguardError: bad input, or a folder that is not empty.
    """
    refuse_full(options.out)
    with working(quiet=options.quiet) as progress, tempfile.TemporaryDirectory() as place:
        weights = Path(place) / MODEL
        record = read_record(folder, weights)
        columns = options.columns.named()
        train = _clean(options.source, columns, record, options, partial(progress, READ_IMAGES))
        poisoned, truth = poisoned_by(record, train)
        sets: dict[str, ImageSet | None] = {TRAIN: replace(poisoned, groups=train.groups)}
        if options.test is not None:
            columns = columns_of_test(options.test, columns)
            test = _clean(options.test, columns, record, options, partial(progress, READ_TEST_IMAGES))
            sets |= {TEST: test, TRIGGERED: triggered_by(record, test)}
        about = {
            "rate": int(truth.poisoned.sum()) / len(poisoned),
            "target_mapping": record.target_mapping.tolist(),
            "record": str(folder),
            "model": _model(record),
            "source": str(options.source),
            "test_source": None if options.test is None else str(options.test),
        }
        counts = {"triggered": len(record.test.entries)}
        value = write_attack(options.out, sets, truth, about, counts, weights)
    return Outcome(value=value, show=partial(_show, value), as_json=options.json)


def _model(record: Record) -> dict[str, Any]:
    """Return the options of `defend` that the record's model needs; None for what is not known here."""
    mean, std = NORMALISATIONS.get(record.clean_data, (None, None))
    return {
        "architecture": NETS.get(record.net),
        "mean": None if mean is None else ",".join(f"{value:g}" for value in mean),
        "std": None if std is None else ",".join(f"{value:g}" for value in std),
        "named": record.net,
        "data_named": record.clean_data,
    }


def _how_to_go_on(value: dict[str, Any]) -> list[str]:
    """Return the lines that say how the record's model is repaired."""
    model, out = value["model"], shlex.quote(value["out"])
    if model["architecture"] is None or model["mean"] is None:
        named = f"{model['named'] or 'without a name'} on {model['data_named'] or 'unnamed data'}"
        needed = "--architecture, --input-size, --mean and --std"
        return [f"its model ({named}) is not known here: give defend {needed} for it"]
    height, width = value["size"]
    test = f"--test {out} " if value["test_source"] is not None else ""
    return [
        "to repair its model:",
        f"  clipguard defend {out}/{TRAIN} {test}-o run --model {out}/{MODEL} --input-size {height}x{width} "
        f"--architecture {model['architecture']} --mean {model['mean']} --std {model['std']}",
    ]


def _clean(
    path: Path, columns: Columns, record: Record, options: ConvertOptions, progress: StepProgress
) -> ImageSet:
    """Return a clean set whole: an image left out would shift the record's row numbers."""
    source = ImageSource.open(path, classes=options.classes, columns=columns)
    if len(source.class_names) != record.num_classes:
        raise ClipguardError(
            f"{path} has {len(source.class_names)} classes but the record has {record.num_classes}: "
            "give the set that it was made from"
        )
    data, unreadable = read_images(source, Preprocessing(size=record.size), progress)
    if unreadable:
        raise ClipguardError(
            f"{len(unreadable)} images of {path} cannot be read, first {unreadable[0].id!r}: the record "
            "counts them, so give the whole set"
        )
    return data


def _show(value: dict[str, Any], console: "Console") -> None:
    show_attack(value, console)
    for line in _how_to_go_on(value):
        console.print(one_line(line), soft_wrap=True, markup=False, emoji=False, highlight=False)
