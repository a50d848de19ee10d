"""The commands. Each imports what it needs when it runs, so that `--help` starts in a blink."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from clipguard import __version__
from clipguard.cli.applying import ApplyOptions
from clipguard.cli.exporting import ExportOptions
from clipguard.cli.guide import GuideCheckOptions, GuideCleanOptions, GuideName
from clipguard.cli.help_pages import epilogue
from clipguard.cli.options import (
    AttackOptions,
    BenchOptions,
    ConvertOptions,
    DefendOptions,
    DemoOptions,
    DoctorOptions,
    Json,
    ScanOptions,
    VerifyOptions,
)
from clipguard.cli.outcome import Outcome

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
    # Markdown would take the stars of a pattern for itself.
    help_format="plaintext",
    result_action="return_value",
    help_epilogue="clipguard COMMAND --help has examples and the exit codes of a command.",
)


@app.command(help_epilogue=epilogue("scan"))
def scan(source: Source, /, options: ScanOptions) -> Outcome:
    """Rank the samples by suspicion and write a report."""
    from clipguard.cli.opening import begin

    opening = begin(source, options)
    from clipguard.cli.defence import run_scan

    return run_scan(opening, options)


@app.command(help_epilogue=epilogue("defend"))
def defend(source: Source, /, options: DefendOptions) -> Outcome:
    """Scan, then repair a model that was trained on the data."""
    from clipguard.cli.opening import begin

    opening = begin(source, options)
    from clipguard.cli.defence import run_defend

    return run_defend(opening, options)


@app.command(help_epilogue=epilogue("demo"))
def demo(options: DemoOptions | None = None) -> Outcome:
    """Poison 4,000 digits, train a model on them, scan, repair, report: offline, about two minutes."""
    from clipguard.cli.defence import run_demo

    return run_demo(options or DemoOptions())


@app.command(help_epilogue=epilogue("report"))
def report(
    run: Run,
    /,
    *,
    static: Annotated[bool, Parameter(help="Write a page without any script.", negative="")] = False,
    without_pictures: Annotated[
        bool, Parameter(help="Replace the page of a run whose pictures `clean` has dropped.", negative="")
    ] = False,
    json: Json = False,
) -> Outcome:
    """Write the page of a finished run once more, with the review marks that lie in its folder."""
    from clipguard.cli.reporting import run_report

    return run_report(run, static=static, without_pictures=without_pictures, as_json=json)


@app.command(help_epilogue=epilogue("apply"))
def apply(
    run: Run,
    source: Annotated[Path, Parameter(help="The data that the run was made of; it is only read.")],
    /,
    options: ApplyOptions,
) -> Outcome:
    """Copy the data without its flagged samples, in its own format; nothing is deleted."""
    from clipguard.cli.applying import run_apply

    return run_apply(run, source, options)


@app.command(help_epilogue=epilogue("export"))
def export(run: Run, /, options: ExportOptions) -> Outcome:
    """Write the results of a run in the format of another program."""
    from clipguard.cli.exporting import run_export

    return run_export(run, options)


@app.command(help_epilogue=epilogue("clean"))
def clean(run: Run, /, *, json: Json = False) -> Outcome:
    """Delete the cached intermediate results of a finished run; `verify --data` needs them, results stay."""
    from clipguard.cli.cleaning import run_clean

    return run_clean(run, json)


@app.command(help_epilogue=epilogue("verify"))
def verify(run: Run, /, options: VerifyOptions | None = None) -> Outcome:
    """Compare the files of a run with their recorded hashes: exit code 0 if all agree, 1 if one differs."""
    from clipguard.cli.checking import run_verify

    return run_verify(run, options or VerifyOptions())


@app.command(help_epilogue=epilogue("doctor"))
def doctor(
    source: Annotated[Path | None, Parameter(help="Data to estimate time, memory and disk for.")] = None,
    /,
    options: DoctorOptions | None = None,
) -> Outcome:
    """Say what is installed here, what a run can use, and what it would take."""
    from clipguard.cli.doctor import run_doctor

    return run_doctor(source, options or DoctorOptions())


guide = App(
    name="guide",
    help="Check whether the guide itself carries a backdoor, and clean it.",
    help_epilogue=epilogue("guide"),
)
app.command(guide)


@guide.command(name="check", help_epilogue=epilogue("guide check"))
def guide_check(name: GuideName, source: Source, /, options: GuideCheckOptions | None = None) -> Outcome:
    """Say which classes a small pattern reaches, and where two guides differ, on your data."""
    from clipguard.cli.guide import run_check

    return run_check(name, source, options or GuideCheckOptions())


@guide.command(name="clean", help_epilogue=epilogue("guide clean"))
def guide_clean(name: GuideName, source: Source, /, options: GuideCleanOptions) -> Outcome:
    """Fine-tune a guide on trusted labelled images, so that a backdoor of its own fades."""
    from clipguard.cli.guide import run_clean

    return run_clean(name, source, options)


@app.command(help_epilogue=epilogue("completion"))
def completion(
    *,
    shell: Annotated[
        Literal["bash", "zsh", "fish", "powershell"] | None, Parameter(help="Default: the shell in use.")
    ] = None,
    install: Annotated[
        bool, Parameter(negative="", help="Write it where the shell looks, and load it in its start-up file.")
    ] = False,
    json: Json = False,
) -> Outcome:
    """Print the completion of commands and options for a shell, or install it."""
    from clipguard.cli.completing import run_completion

    return run_completion(app, shell, install, json)


@app.command(help_epilogue=epilogue("attack"))
def attack(source: Source, /, options: AttackOptions) -> Outcome:
    """Poison a data set, to try a defence on it."""
    from clipguard.cli.poisoned import run_attack

    return run_attack(source, options)


@app.command(help_epilogue=epilogue("convert"))
def convert(
    record: Annotated[Path, Parameter(help="Folder of a BackdoorBench record, with attack_result.pt.")],
    /,
    options: ConvertOptions,
) -> Outcome:
    """Turn a BackdoorBench record into a folder such as `attack` writes."""
    from clipguard.cli.converted import run_convert

    return run_convert(record, options)


@app.command(help_epilogue=epilogue("bench"))
def bench(
    file: Annotated[Path, Parameter(help="TOML file: data sets, attacks, rates, guides, nets, seeds.")],
    /,
    options: BenchOptions,
) -> Outcome:
    """Compare defences over attacks; finished rows are kept, and the same command goes on from there."""
    from clipguard.cli.bench import run_benchmark

    return run_benchmark(file, options)


@app.command(help_epilogue=epilogue("bench-report"))
def bench_report(
    run: Annotated[Path, Parameter(help="Folder that bench wrote.")], /, *, json: Json = False
) -> Outcome:
    """Write table and pictures of a benchmark once more."""
    from clipguard.cli.bench import run_report

    return run_report(run, json)
