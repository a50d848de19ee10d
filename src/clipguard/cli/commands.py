"""The commands. Each imports what it needs when it runs, so that `--help` starts in a blink."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from clipguard import __version__
from clipguard.cli.options import (
    AttackOptions,
    BenchOptions,
    ConvertOptions,
    DefendOptions,
    DemoOptions,
    Json,
    ScanOptions,
)
from clipguard.cli.outcome import ERROR, EXIT_CODES, Outcome

_NAMED = {**EXIT_CODES, "error": ERROR}
_CODES = ", ".join(f"{_NAMED[name]} {name}" for name in sorted(_NAMED, key=_NAMED.__getitem__))

Source = Annotated[
    Path,
    Parameter(
        help="Image folder (one sub-folder a class); .parquet, .tar or .npz file; folder of shards; or a "
        "pattern such as data-{000..009}.tar."
    ),
]
Run = Annotated[Path, Parameter(help="Run folder.")]

app = App(
    name="clipguard",
    version=__version__,
    help="Find and remove backdoors in untrusted, labelled image data sets (one label an image).",
    result_action="return_value",
    help_epilogue=f"Exit codes of scan and defend: {_CODES}; see --fail-on.",
)


@app.command
def scan(source: Source, /, options: ScanOptions) -> Outcome:
    """Rank the samples by suspicion and write a report."""
    from clipguard.cli.defence import run_scan

    return run_scan(source, options)


@app.command
def defend(source: Source, /, options: DefendOptions) -> Outcome:
    """Scan, then repair a model that was trained on the data."""
    from clipguard.cli.defence import run_defend

    return run_defend(source, options)


@app.command
def demo(options: DemoOptions | None = None) -> Outcome:
    """Poison 4,000 digits, train a model on them, scan, repair, report: offline, about two minutes."""
    from clipguard.cli.defence import run_demo

    return run_demo(options or DemoOptions())


@app.command
def report(
    run: Run,
    /,
    *,
    static: Annotated[bool, Parameter(help="Write a page without any script.", negative="")] = False,
    json: Json = False,
) -> Outcome:
    """Write the page of a finished run once more."""
    from clipguard.outputs.report import write_report

    path = str(write_report(run, static=static))
    return Outcome(
        value={"report": path},
        show=lambda console: console.print(path, soft_wrap=True, markup=False),
        as_json=json,
    )


@app.command
def verify(
    run: Run,
    /,
    *,
    data: Annotated[Path | None, Parameter(help="The data that the run was made of.")] = None,
    model: Annotated[Path | None, Parameter(help="The weights that were given to defend.")] = None,
    guide: Annotated[
        Path | None, Parameter(help="The guide's weights, or the folder that holds them.")
    ] = None,
    json: Json = False,
) -> Outcome:
    """Compare the files of a run with their recorded hashes: exit code 0 if all agree, 1 if one differs."""
    from clipguard.cli.checking import run_verify

    return run_verify(run, data, model, guide, json)


@app.command
def attack(source: Source, /, options: AttackOptions) -> Outcome:
    """Poison a data set, to try a defence on it."""
    from clipguard.cli.poisoned import run_attack

    return run_attack(source, options)


@app.command
def convert(
    record: Annotated[Path, Parameter(help="Folder of a BackdoorBench record, with attack_result.pt.")],
    /,
    options: ConvertOptions,
) -> Outcome:
    """Turn a BackdoorBench record into a folder such as `attack` writes."""
    from clipguard.cli.converted import run_convert

    return run_convert(record, options)


@app.command
def bench(
    file: Annotated[Path, Parameter(help="TOML file: data sets, attacks, rates, guides, nets, seeds.")],
    /,
    options: BenchOptions,
) -> Outcome:
    """Compare defences over attacks; finished rows are kept, and the same command goes on from there."""
    from clipguard.cli.bench import run_benchmark

    return run_benchmark(file, options)


@app.command
def bench_report(
    run: Annotated[Path, Parameter(help="Folder that bench wrote.")], /, *, json: Json = False
) -> Outcome:
    """Write table and pictures of a benchmark once more."""
    from clipguard.cli.bench import run_report

    return run_report(run, json)
