"""`scan`, `defend` and `demo`: options to settings, settings to a defender, its results to an outcome."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from clipguard.cli.format_files import files_of, formats_from, write_formats
from clipguard.cli.given_model import spec_of_model
from clipguard.cli.measuring import EvaluationSet, check_test, measure, open_test
from clipguard.cli.opening import Opening, opened_source
from clipguard.cli.options import DefendOptions, DemoOptions, ScanOptions
from clipguard.cli.outcome import Outcome, exit_code
from clipguard.cli.poisoned import READ_TEST_IMAGES, truth_beside
from clipguard.cli.tables import Detail, most_suspicious, show_run
from clipguard.cli.text import parsed, size_from
from clipguard.clip.zero_shot import guide_from_name
from clipguard.compute.device import choose_device
from clipguard.compute.engine import Engine, LocalEngine
from clipguard.compute.ray_engine import RayEngine
from clipguard.compute.recipes import DEFAULT_RECIPE
from clipguard.detection.early_model import early_model_named
from clipguard.detection.entropy_map import EntropyMapConfig
from clipguard.errors import ClipguardError
from clipguard.lab.demo import demo_config, demo_guide, poisoned_digits
from clipguard.mitigation.unlearning import CGD, UnlearningConfig
from clipguard.models.onnx_file import ONNX, check_exporter, write_onnx
from clipguard.outputs.formats import github, read_flagged
from clipguard.outputs.progress import warn, working
from clipguard.outputs.steps import Timetable
from clipguard.pipeline.config import DefenseConfig
from clipguard.pipeline.defender import Defender
from clipguard.pipeline.stages import STAGES
from clipguard.publishing import NO_FILES, publish
from clipguard.runs.summary import RunSummary, plain
from clipguard.types import Progress


def run_scan(opening: Opening, options: ScanOptions) -> Outcome:
    """Return the outcome of a scan.

    Raises:
        ClipguardError: bad input.
    """
    config, formats = _scan_config(options), _formats(options)
    with working(_plan(opening), quiet=options.quiet) as progress:
        source = opening.source or opened_source(opening.path, options)
        defender = _defender(options, config, progress).scan(source)
        summary = _finish(defender, "scan", formats)
    return _outcome(defender, summary, options, formats)


def run_defend(opening: Opening, options: DefendOptions) -> Outcome:
    """Return the outcome of a defence.

    Raises:
        ClipguardError: bad input.
    """
    config, formats, path = _defend_config(options), _formats(options), opening.path
    if options.onnx:
        check_exporter()
    with working(_plan(opening), quiet=options.quiet) as progress:
        source = opening.source or opened_source(path, options)
        spec, words = None, None
        if options.model is not None:
            spec, words = spec_of_model(options, source)
            config = replace(config, architecture=spec.architecture)
        test, notes = None, []
        if options.test is not None:
            # Before any work, so that a mistake here does not cost the minutes of a training.
            truth = truth_beside(path, options.test) if options.rows is None else None
            test = open_test(options.test, source, options.classes, truth)
            notes = check_test(test, partial(progress, READ_TEST_IMAGES))
        defender = _defender(options, config, progress)
        defender.fit(source, model=options.model, spec=spec)
        defender.warnings_ += notes
        files = _with_onnx(defender, options.onnx)
        summary = _finish(defender, "defend", formats, files, model=words, **measure(defender, test))
    return _outcome(defender, summary, options, formats)


def _with_onnx(defender: Defender, asked_for: bool) -> dict[str, str]:
    """Return the ONNX file of the repaired model by its name, now in the run folder, if it was asked for."""
    run = defender.scan_.context.run
    # It would be an earlier repair's.
    run.retract(ONNX)
    if not asked_for:
        return {}
    try:
        with run.publishing(ONNX) as path:
            write_onnx(run.path, path)
    except ClipguardError as error:  # the repair took its time, and is there
        defender.warnings_.append(f"no {ONNX} was written: {error}")
        return {}
    return {"onnx": ONNX}


def _formats(options: ScanOptions) -> tuple[str, ...]:
    if options.quiet and options.verbose:
        raise ClipguardError("--quiet and --verbose contradict each other: leave one out")
    return formats_from(options.format)


def _plan(opening: Opening) -> Timetable | None:
    """Return the steps of the command, as the progress of their stages names them."""
    if opening.estimate is None:
        return None
    titles = {stage.name: stage.title for stage in STAGES}
    return Timetable(opening.estimate.steps, titles, timed=opening.estimate.timed)


def run_demo(options: DemoOptions) -> Outcome:
    """Return the outcome of the demonstration; its exit code is 0 whatever the verdict, unless asked for.

    Raises:
        ClipguardError: the package that carries the digits is missing, or the run folder is something else.
    """
    config = replace(demo_config(options.seed), power=options.power)
    if options.quiet and options.verbose:
        raise ClipguardError("--quiet and --verbose contradict each other: leave one out")
    with working(quiet=options.quiet) as progress:
        digits = poisoned_digits(options.seed)
        defender = Defender(
            demo_guide(),
            options.out,
            config=config,
            progress=progress,
            device=options.device,
            threads=options.threads,
        )
        defender.fit(digits.source)
        test = EvaluationSet(
            clean=digits.test,
            triggered=digits.triggered,
            target_mapping=digits.target_mapping,
            truth=digits.truth,
        )
        summary = _finish(defender, "demo", (), **measure(defender, test))
    return _outcome(defender, summary, options, ())


def _defender(options: ScanOptions, config: DefenseConfig, progress: Progress) -> Defender:
    guide_named = partial(
        guide_from_name, templates=options.template or None, use_logit_scale=options.logit_scale
    )
    return Defender(
        guide_named(options.guide),
        options.out,
        config=config,
        progress=progress,
        second_guide=None if options.second_guide is None else guide_named(options.second_guide),
        device=options.device,
        threads=options.threads,
        engine=_engine(options),
        embeddings=options.embeddings,
        quality=options.quality,
        baseline=options.baseline,
        reviews=options.reviews,
    )


def _engine(options: ScanOptions) -> Engine:
    """Return who runs the reading pass.

    Raises:
        ClipguardError: options of Ray without Ray, or no worker.
    """
    if options.engine == "local":
        if options.ray_address is not None or options.workers is not None:
            raise ClipguardError(
                "--ray-address and --workers are for --engine ray: add it, or leave them out"
            )
        return LocalEngine()
    if options.workers is not None and options.workers < 1:
        raise ClipguardError(f"--workers {options.workers}: give 1 or more")
    gpus = 0.0 if choose_device(options.device).kind == "cpu" else 1.0
    return RayEngine(address=options.ray_address, workers=options.workers, gpus=gpus)


def _scan_config(options: ScanOptions) -> DefenseConfig:
    return DefenseConfig(
        size=parsed(size_from, options.size, "--size"),
        early_model=early_model_named(options.early_model),
        entropy_map=EntropyMapConfig(by=options.rank_within),
        power=options.power,
        seed=options.seed,
    )


def _defend_config(options: DefendOptions) -> DefenseConfig:
    """Return the settings of `defend`; options that contradict each other are refused, not ignored."""
    trains = options.model is None or options.by == "retrain"
    about = (
        options.input_size,
        options.mean,
        options.std,
        options.resize,
        options.crop,
        options.interpolation,
    )
    if options.model is None and any(about):
        raise ClipguardError(
            "--input-size, --mean, --std, --resize, --crop and --interpolation describe the file of --model: "
            "give --model, or --size"
        )
    if options.epochs is not None and (options.epochs < 1 or not trains):
        raise ClipguardError(
            "--epochs is 1 or more, of a model trained here: leave it out to unlearn --model"
        )
    if options.by == "retrain" and options.loss != "unlikelihood":
        raise ClipguardError("--loss is that of unlearning: leave it out with --by retrain")
    if options.drop_anyway and options.by != "retrain":
        raise ClipguardError("--drop-anyway is for --by retrain: leave it out, unlearning drops no sample")
    if options.rate is not None and (options.by == "retrain" or not 0 < options.rate <= 1):
        raise ClipguardError("--rate is that of unlearning, above 0 and at most 1: such as 0.005")
    config = _scan_config(options)
    unlearning = CGD if options.loss == "cgd" else UnlearningConfig()
    return replace(
        config,
        architecture=options.architecture or config.architecture,
        victim=replace(DEFAULT_RECIPE, epochs=options.epochs or DEFAULT_RECIPE.epochs, flip=options.flip),
        by=options.by,
        drop_anyway=options.drop_anyway,
        unlearning=replace(
            unlearning,
            recipe=replace(unlearning.recipe, flip=options.flip),
            rate=unlearning.rate if options.rate is None else options.rate,
        ),
    )


def _finish(
    defender: Defender,
    command: str,
    formats: Sequence[str],
    files: Mapping[str, str] = NO_FILES,
    model: str | None = None,
    **measured: Any,
) -> RunSummary:
    """Return the summary, now in the run folder together with the report and the files of the formats."""
    summary = publish(defender, command, files={**files_of(formats), **files}, model=model, **measured)
    write_formats(defender.scan_.context.run, formats, summary, read_flagged(Path(defender.run_dir)))
    return summary


def _outcome(
    defender: Defender, summary: RunSummary, options: ScanOptions | DemoOptions, formats: Sequence[str]
) -> Outcome:
    warn(defender.warnings_)
    run, as_json = Path(defender.run_dir), options.json or "json" in formats
    flagged = read_flagged(run)
    if "github" in formats:
        # The runner reads both; with JSON, stdout holds one object and nothing else.
        (sys.stderr if as_json else sys.stdout).write(github(summary, flagged))
    detail: Detail = "quiet" if options.quiet else "verbose" if options.verbose else "normal"
    manifest = defender.scan_.context.run.manifest
    show = partial(show_run, summary, most_suspicious(run), flagged=flagged, detail=detail, manifest=manifest)
    judged_by = summary.verdict if summary.baseline is None else summary.baseline.verdict
    return Outcome(
        value=plain(summary), show=show, as_json=as_json, code=exit_code(judged_by, options.fail_on)
    )
