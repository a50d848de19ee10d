"""The beginning of `scan` and `defend`, before torch loads: opening the data, and the first line."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from clipguard.cli.estimate import (
    Estimate,
    Workload,
    common_sizes,
    estimated,
    first_line,
    measured_slowness,
    usable_cores,
    view_of,
)
from clipguard.cli.options import DefendOptions, ScanOptions
from clipguard.cli.text import parsed, rows_from, size_from
from clipguard.data import ImageSource
from clipguard.errors import ClipguardError


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What a command begins with.

    Attributes:
        path: of the data.
        source: the data, opened; None where they could not be, which `opened_source` then says.
        estimate: of what is to be done; None without a source, or for one without a readable sample.
    """

    path: Path
    source: ImageSource | None = None
    estimate: Estimate | None = None


def begin(path: Path, options: ScanOptions) -> Opening:
    """Return the opened data and an estimate, after the first line on stderr.

    No error is raised here: one of the options, which are looked at later, may explain it better.
    """
    try:
        source = opened_source(path, options)
        work = workload(source, options)
    except ClipguardError:
        return Opening(path=path)
    cores, busy = usable_cores(options.threads)
    estimate = estimated(work, cores, busy, options.device, measured_slowness())
    if not options.quiet:
        known = ", less what is there already" if (options.out / "stages").is_dir() else ""
        sys.stderr.write(f"clipguard: {first_line(work, estimate, options.out)}{known}\n")
    return Opening(path=path, source=source, estimate=estimate)


def opened_source(path: Path, options: ScanOptions) -> ImageSource:
    """Return the data as the options want them.

    Raises:
        ClipguardError: they cannot be opened, or the run folder lies inside.
    """
    rows = parsed(rows_from, options.rows, "--rows")
    source = ImageSource.open(
        path, classes=options.classes, rows=rows, limits=options.limits, columns=options.columns.named()
    )
    # The run would be one more class of the folder the next time.
    data = source.opened and source.opened.path.resolve()
    if source.kind == "folder" and data and options.out.resolve().is_relative_to(data):
        raise ClipguardError(f"run folder {options.out} lies inside the data {path}: give one outside")
    return source


def workload(source: ImageSource, options: ScanOptions) -> Workload:
    """Return what a command with these options does with a source.

    Raises:
        ClipguardError: no sampled image is readable, or an option has another form.
    """
    sizes = common_sizes(source)
    work = Workload(
        n=len(source),
        classes=len(source.class_names),
        pixels=sizes[0][0] * sizes[0][1],
        view=view_of(sizes, parsed(size_from, options.size, "--size")),
        guide=options.guide,
        power=options.power,
        early_model=options.early_model,
    )
    if not isinstance(options, DefendOptions):
        return work
    trains = options.model is None or options.by == "retrain"
    return replace(
        work,
        defends=True,
        trains=trains,
        epochs=options.epochs or work.epochs,
        architecture=options.architecture or work.architecture,
    )
