"""`scan`, `defend` and `demo`: options to settings, settings to a defender, its results to an outcome."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from clipguard.cli.measuring import EvaluationSet, check_test, measure, open_test
from clipguard.cli.options import DefendOptions, ScanOptions
from clipguard.cli.outcome import Outcome, exit_code
from clipguard.cli.poisoned import MODEL, READ_TEST_IMAGES, truth_beside
from clipguard.cli.progress import warn, working
from clipguard.cli.tables import show_run
from clipguard.cli.text import channels_from, parsed, rows_from, size_from
from clipguard.clip.zero_shot import ClipGuide, guide_from_name
from clipguard.compute.engine import Engine, LocalEngine
from clipguard.compute.ray_engine import RayEngine
from clipguard.compute.training import DEFAULT_RECIPE
from clipguard.data import ImageSource
from clipguard.detection.early_model import early_model_named
from clipguard.detection.entropy_map import EntropyMapConfig
from clipguard.errors import ClipguardError
from clipguard.lab.demo import demo_config, demo_guide, poisoned_digits
from clipguard.mitigation.unlearning import CGD, UnlearningConfig
from clipguard.models.spec import ModelSpec, read_spec
from clipguard.outputs.report import write_report
from clipguard.outputs.samples import SAMPLES
from clipguard.pipeline.computing import FEATURES_FILE
from clipguard.pipeline.config import DefenseConfig
from clipguard.pipeline.defender import Defender
from clipguard.pipeline.summary import write_summary
from clipguard.runs.summary import RunSummary, plain
from clipguard.types import Progress


def run_scan(path: Path, options: ScanOptions) -> Outcome:
    """Return the outcome of a scan.

    Raises:
        ClipguardError: bad input.
    """
    config = _scan_config(options)
    with working() as progress:
        source = _source(path, options)
        defender = _defender(options, config, progress).scan(source)
        if (options.out / MODEL).exists():
            defender.warnings_.append(f"{options.out / MODEL} is of an earlier defend: a scan makes no model")
        summary = _finish(defender, "scan")
    return _outcome(defender, summary, options.json)


def run_defend(path: Path, options: DefendOptions) -> Outcome:
    """Return the outcome of a defence.

    Raises:
        ClipguardError: bad input.
    """
    config = _defend_config(options)
    with working() as progress:
        source = _source(path, options)
        spec = _spec(options, len(source.class_names))
        if spec is not None:
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
        summary = _finish(defender, "defend", **measure(defender, test))
    return _outcome(defender, summary, options.json)


def run_demo(out: Path, seed: int, as_json: bool) -> Outcome:
    """Return the outcome of the demonstration; its exit code is 0 whatever the verdict.

    Raises:
        ClipguardError: the package that carries the digits is missing, or `out` holds something else.
    """
    with working() as progress:
        digits = poisoned_digits(seed)
        defender = Defender(demo_guide(), out, config=demo_config(seed), progress=progress)
        defender.fit(digits.source)
        test = EvaluationSet(
            clean=digits.test,
            triggered=digits.triggered,
            target_mapping=digits.target_mapping,
            truth=digits.truth,
        )
        summary = _finish(defender, "demo", **measure(defender, test))
    return replace(_outcome(defender, summary, as_json), code=0)


def _source(path: Path, options: ScanOptions) -> ImageSource:
    rows = parsed(rows_from, options.rows, "--rows")
    source = ImageSource.open(path, classes=options.classes, rows=rows, limits=options.limits)
    # The run would be one more class of the folder the next time.
    if source.kind == "folder" and options.out.resolve().is_relative_to(path.resolve()):
        raise ClipguardError(f"run folder {options.out} lies inside the data {path}: give one outside")
    return source


def _defender(options: ScanOptions, config: DefenseConfig, progress: Progress) -> Defender:
    return Defender(_guide(options), options.out, config=config, progress=progress, engine=_engine(options))


def _guide(options: ScanOptions) -> ClipGuide:
    return guide_from_name(
        options.guide, templates=options.template or None, use_logit_scale=options.logit_scale
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
    return RayEngine(address=options.ray_address, workers=options.workers)


def _scan_config(options: ScanOptions) -> DefenseConfig:
    return DefenseConfig(
        size=parsed(size_from, options.size, "--size"),
        early_model=early_model_named(options.early_model),
        entropy_map=EntropyMapConfig(by=options.rank_within),
        seed=options.seed,
    )


def _defend_config(options: DefendOptions) -> DefenseConfig:
    """Return the settings of `defend`; options that contradict each other are refused, not ignored."""
    trains = options.model is None or options.by == "retrain"
    if options.model is None and (options.input_size or options.mean or options.std):
        raise ClipguardError(
            "--input-size, --mean and --std describe the file of --model: give --model, or --size"
        )
    if options.epochs is not None and (options.epochs < 1 or not trains):
        raise ClipguardError(
            "--epochs is 1 or more, of a model trained here: leave it out to unlearn --model"
        )
    if options.by == "retrain" and options.loss != "unlikelihood":
        raise ClipguardError("--loss is that of unlearning: leave it out with --by retrain")
    config = _scan_config(options)
    unlearning = CGD if options.loss == "cgd" else UnlearningConfig()
    return replace(
        config,
        architecture=options.architecture or config.architecture,
        victim=replace(DEFAULT_RECIPE, epochs=options.epochs or DEFAULT_RECIPE.epochs, flip=options.flip),
        by=options.by,
        unlearning=replace(unlearning, recipe=replace(unlearning.recipe, flip=options.flip)),
    )


def _spec(options: DefendOptions, classes: int) -> ModelSpec | None:
    """Return how the model of --model is built: by its own header, where options do not say otherwise.

    Raises:
        ClipguardError: neither header nor options say it, or the file cannot be read.
    """
    if options.model is None:
        return None
    std = parsed(channels_from, options.std, "--std")
    if std is not None and min(std) <= 0:
        raise ClipguardError(f"--std {options.std!r}: the numbers must be above 0")
    fields = {
        "architecture": options.architecture,
        "input_size": parsed(size_from, options.input_size, "--input-size"),
        "mean": parsed(channels_from, options.mean, "--mean"),
        "std": std,
    }
    given: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    known = read_spec(options.model)
    if known is not None:
        return replace(known, **given)
    if not {"architecture", "input_size"} <= given.keys():
        raise ClipguardError(
            f"model {options.model} does not say how it is built: give --architecture and --input-size"
        )
    return ModelSpec(num_classes=classes, **given)


def _finish(defender: Defender, command: str, **measured: Any) -> RunSummary:
    """Return the summary, now in the run folder together with the report."""
    run = Path(defender.run_dir)
    files = {"report": "report.html", "samples": SAMPLES}
    if measured:
        files["model"] = MODEL
    if "feature_separation" in defender.stages_:
        files["labels"] = FEATURES_FILE
    places = {name: str(run / file) for name, file in files.items()}
    summary = write_summary(defender, command, files=places, **measured)
    write_report(run)
    return summary


def _outcome(defender: Defender, summary: RunSummary, as_json: bool) -> Outcome:
    warn(defender.warnings_)
    show = partial(show_run, summary, defender.samples_)
    return Outcome(value=plain(summary), show=show, as_json=as_json, code=exit_code(summary))
