"""`Defender`: scan and repair behind names that follow scikit-learn's."""

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from torch import nn

from clipguard.clip.zero_shot import ClipGuide
from clipguard.compute.inference import thread_count
from clipguard.data import ImageSource
from clipguard.data.decode import common_size
from clipguard.data.provenance import hashing
from clipguard.models.spec import ModelSpec, Normalized, build, check_sound, load
from clipguard.pipeline.computing import FEATURES_FILE
from clipguard.pipeline.config import DefenseConfig
from clipguard.pipeline.repair import (
    for_model,
    repair,
    spec_to_train,
    train,
    with_held_out,
    with_model_triggers,
)
from clipguard.pipeline.scan import Context, Scan, notes_of
from clipguard.pipeline.scanning import scan
from clipguard.pipeline.stages import RETRAINING, VICTIM
from clipguard.pipeline.summary import verdict, warnings_of
from clipguard.pipeline.victims import check_fit, given_victim
from clipguard.runs import FinishedStage, RunFolder, SourceInfo, described, read_table
from clipguard.seeds import Seed
from clipguard.types import Partition, Progress, State


class Defender:
    """Scans an untrusted data set and repairs a model that was trained on it.

    The constructor only stores. After `scan`: `samples_` (columns of samples.parquet), `partition_`,
    `verdict_`, `warnings_`, `triggers_` (what the flagged samples share: none, one, or one a target). After
    `fit` also `model_` (repaired), `before_` (the victim), `spec_`, `history_`. Every stage is cached in
    `run_dir`; running again resumes.

    Args:
        guide: the CLIP that reads the labels; the default needs its weights from the hub or its cache.
        run_dir: folder of the run.
        config: all other settings.
        progress: called with (step, done, total) as work goes on.
    """

    def __init__(
        self,
        guide: ClipGuide | None = None,
        run_dir: str | Path = "runs/clipguard",
        *,
        config: DefenseConfig | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.guide = guide
        self.run_dir = run_dir
        self.config = config
        self.progress = progress

    def scan(self, source: object) -> "Defender":
        """Return self with partition and verdict of `source` (anything that `ImageSource.open` takes).

        Raises:
            ClipguardError: bad input; one line says what to do.
        """
        self._scan(_opened(source))
        # It would be an earlier repair's.
        self.scan_.context.run.retract(FEATURES_FILE)
        return self

    def fit(
        self, source: object, model: str | Path | nn.Module | None = None, spec: ModelSpec | None = None
    ) -> "Defender":
        """Return self with a model without the backdoor.

        Args:
            source: the untrusted data set.
            model: the victim: a safetensors file or a module; None trains one here first.
            spec: how to build the file's model; not needed for a file that clipguard wrote.

        Raises:
            ClipguardError: bad input; one line says what to do.
        """
        opened, config = _opened(source), self.config or DefenseConfig()
        given = None if model is None else given_victim(model, spec, opened.class_names)
        like = None if given is None else given.spec
        if given is None or config.by == "retrain":
            _try_to_build(config, len(opened.class_names), like)
        self._scan(opened, model if isinstance(model, (str, Path)) else None)
        if given is None:
            self.trained_on_ = with_held_out(self.scan_)
            self.before_, self.spec_, origin = self._train_victim(config)
        else:
            self.before_, self.spec_, origin = given.model, given.spec, given.origin
            self.trained_on_ = for_model(self.scan_, self.spec_.preprocessing)
            check_fit(given, self.trained_on_)
        stage = self._retrain(config, like) if config.by == "retrain" else self._unlearn(origin)
        self.history_ = read_table(stage.path / "history.parquet")
        of_repair = notes_of(stage)
        others = [line for line in warnings_of(self.scan_) if line not in of_repair]
        self.warnings_ = [*of_repair, *(given.notes if given else ()), *others]
        run = self.scan_.context.run
        run.publish(stage.path / "model.safetensors", "model.safetensors")
        if "feature_separation" not in self.stages_:
            # It would be an earlier repair's.
            run.retract(FEATURES_FILE)
        return self

    @property
    def stages_(self) -> dict[str, FinishedStage]:
        """The finished stages by name, in their order."""
        return self.scan_.context.finished

    @property
    def partition_(self) -> Partition:
        """What becomes of every sample."""
        return self.scan_.partition

    def _train_victim(self, config: DefenseConfig) -> tuple[Normalized, ModelSpec, str]:
        scan = self.trained_on_
        spec = spec_to_train(config, scan.num_classes, scan.data.images.shape[1:3], None)
        stage = train(scan, ~scan.partition.has(State.HELD_OUT), spec, VICTIM)
        return load(stage.path / "model.safetensors", spec), spec, stage.key

    def _retrain(self, config: DefenseConfig, like: ModelSpec | None) -> FinishedStage:
        scan = self.trained_on_
        self.spec_ = spec_to_train(config, scan.num_classes, scan.data.images.shape[1:3], like)
        stage = train(scan, scan.partition.has(State.CLEAN, State.UNCERTAIN), self.spec_, RETRAINING)
        self.model_ = load(stage.path / "model.safetensors", self.spec_)
        return stage

    def _unlearn(self, origin: str) -> FinishedStage:
        self.trained_on_ = with_model_triggers(self.trained_on_, self.scan_)
        held_out = self.trained_on_.partition.has(State.HELD_OUT)
        unseen = np.flatnonzero(held_out & self.partition_.clean)
        stage = repair(self.trained_on_, self.before_, self.spec_, origin, unseen)
        self.model_ = _weights_into(self.before_, stage)
        return stage

    def _scan(self, source: ImageSource, model: str | Path | None = None) -> "Defender":
        config, guide, source = self.config or DefenseConfig(), self.guide or ClipGuide(), hashing(source)
        progress = self.progress or (lambda step, done, total: None)
        # First of all: whether the guide's weights can be had shows at once, a large data set takes its time.
        about = _about_guide(guide)
        run = _open_run(self.run_dir, source, guide, config, progress)
        run.manifest["guide"] = about
        run.manifest["model"] = model and {"path": str(model), **described(Path(model))}
        context = Context(
            run=run,
            source=source,
            sizes=common_size(source),
            guide=guide,
            config=config,
            progress=progress,
        )
        self.scan_: Scan = scan(context)
        self.samples_ = read_table(run.path / "samples.parquet")
        self.triggers_ = self.scan_.triggers
        self.verdict_ = verdict(self.scan_)
        self.warnings_ = warnings_of(self.scan_)
        return self


def _try_to_build(config: DefenseConfig, classes: int, like: ModelSpec | None) -> None:
    """Build a model as it would be trained here: what a scan takes minutes for must not end without one."""
    size = like.input_size if like else config.size or (32, 32)
    spec = spec_to_train(config, classes, size, like)
    check_sound(build(spec, Seed(0)), spec)


def _about_guide(guide: ClipGuide) -> dict[str, Any]:
    return {
        "name": guide.name,
        "sha256": guide.clip.fingerprint,
        "preprocessing_sha256": guide.clip.preprocessing_sha256,
        "weights_verified_by": guide.weights_verified_by,
    }


def _open_run(
    run_dir: str | Path, source: ImageSource, guide: ClipGuide, config: DefenseConfig, progress: Progress
) -> RunFolder:
    n = len(source)
    progress("hash the data", 0, n)
    info = SourceInfo(
        kind=source.kind,
        location=source.location,
        fingerprint=source.fingerprint,
        n=n,
        class_names=source.class_names,
    )
    progress("hash the data", n, n)
    settings = {"guide": guide.name, "templates": guide.prompts, "defense": asdict(config)}
    return RunFolder.open(run_dir, info, settings, seed=config.seed, threads=thread_count())


def _opened(source: object) -> ImageSource:
    return source if isinstance(source, ImageSource) else ImageSource.open(source)


def _weights_into(like: Normalized, stage: FinishedStage) -> Normalized:
    """Return a copy of the model `like` with the weights of a stage, also where no name can build it."""
    model = copy.deepcopy(like)
    model.network.load_state_dict(load_file(stage.path / "model.safetensors"))
    return model.eval()
