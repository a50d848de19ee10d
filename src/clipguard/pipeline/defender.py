"""`Defender`: scan and repair. `clipguard.estimator` adds to it what Python users expect."""

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Concatenate, Final, Literal, ParamSpec, TypeVar

import numpy as np
from safetensors.torch import load_file
from torch import nn

from clipguard.clip.zero_shot import ClipGuide, guide_from_name
from clipguard.compute.device import choose_device, computing_on, current_device
from clipguard.compute.engine import Engine, LocalEngine
from clipguard.compute.threads import granted_threads, one_thread
from clipguard.data import ImageSource
from clipguard.data.decode import common_size
from clipguard.errors import ClipguardError
from clipguard.mitigation.mirroring import names_against_mirroring
from clipguard.models.spec import ModelSpec, Normalized, build, check_sound, load, save
from clipguard.pipeline.baseline import check_baseline
from clipguard.pipeline.chosen_options import chosen_options
from clipguard.pipeline.computing import FEATURES_FILE
from clipguard.pipeline.config import DefenseConfig
from clipguard.pipeline.repair import (
    for_model,
    recipe_like,
    repair,
    spec_to_train,
    train,
    with_held_out,
    with_model_triggers,
)
from clipguard.pipeline.retraining import check_drop
from clipguard.pipeline.reviewing import given_reviews
from clipguard.pipeline.run_opening import open_run
from clipguard.pipeline.scan import Context, Scan, notes_of
from clipguard.pipeline.scanning import scan
from clipguard.pipeline.stages import RETRAINING, VICTIM
from clipguard.pipeline.summary import warnings_of
from clipguard.pipeline.unlearning_stage import NOT_MIRRORED
from clipguard.pipeline.verdict import verdict
from clipguard.pipeline.victims import check_fit, given_victim
from clipguard.runs import FinishedStage, described, read_table
from clipguard.runs.samples_table import SAMPLES, source_order
from clipguard.seeds import Seed, Stream
from clipguard.types import Partition, Preprocessing, Progress, State

UNTOUCHED: Final = "nothing is flagged: the model is left as it is"
MOST_UNSEEN: Final = 5000
"""Trusted samples that a model has not learned, of which its repair is measured on so many at most."""
CLEARED: Final = (
    "no flagged sample is left to unlearn: the model's features cleared them, or it never learned them; the "
    "model is left as it is"
)

Given = ParamSpec("Given")
Result = TypeVar("Result")


def _with_its_means(
    method: Callable[Concatenate["Defender", Given], Result],
) -> Callable[Concatenate["Defender", Given], Result]:
    """Return the method that computes on the defender's device and with its threads.

    What its caller has chosen for the whole thread goes before what would be found.
    """

    @functools.wraps(method)
    def computed(self: "Defender", /, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        outside = current_device()
        device = choose_device(self.device) if self.device or outside is None else outside
        with computing_on(device), granted_threads(self.threads), one_thread():
            return method(self, *args, **kwargs)

    return computed


class Defender:
    """Scans an untrusted data set and repairs a model that was trained on it.

    The constructor only stores. After `scan`: `samples_` (columns of samples.parquet, rows in the order of
    the source), `partition_`, `verdict_`, `warnings_`, `triggers_` (what the flagged samples share: none,
    one, or one a target). After `fit` also `model_` (repaired; the victim itself where nothing is flagged),
    `before_` (the victim), `spec_`, `history_` (of the repair). Every stage is cached in `run_dir`; running
    again resumes.

    Args:
        guide: the CLIP that reads the labels, or its name, such as `mini`; the default needs its weights from
            the hub or its cache.
        second_guide: another CLIP that reads them, too. It changes no result: where it differs is reported.
        run_dir: folder of the run.
        config: all other settings.
        progress: called with (step, done, total) as work goes on; from other threads, too, one at a time.
            None and False show nothing.
        device: `cpu`, `cuda`, `cuda:N`, or `auto`, the first GPU that works or else the processor; None takes
            the one in CLIPGUARD_DEVICE, else `auto`.
        threads: that compute at once; None takes OMP_NUM_THREADS, else all cores that there are, of which one
            training takes those that are idle when the run begins. Only the weights of models trained or
            repaired here depend on it.
        embeddings: folder of embeddings that the guide has computed elsewhere, in clip-retrieval's layout.
        baseline: run folder of an earlier scan by the same guide; only images that it lacks are embedded.
        engine: who reads and embeds the data, shard by shard; by default this process.
        quality: whether duplicates, label errors and odd images are looked for, too; they change no other
            result.
        reviews: file of review marks, which have the last word on what becomes of a sample; None takes
            reviews.json of the run folder or of the baseline's, if there.
    """

    _samples: dict[str, Any] | None

    def __init__(  # noqa: PLR0913  # settings that are only stored, most by name alone
        self,
        guide: ClipGuide | str | None = None,
        run_dir: str | Path = "runs/clipguard",
        *,
        config: DefenseConfig | None = None,
        progress: Progress | Literal[False] | None = None,
        engine: Engine | None = None,
        embeddings: Path | None = None,
        second_guide: ClipGuide | str | None = None,
        device: str | None = None,
        threads: int | None = None,
        quality: bool = True,
        baseline: Path | None = None,
        reviews: Path | None = None,
    ) -> None:
        self.guide = guide
        self.run_dir = run_dir
        self.config = config
        self.progress = progress
        self.engine = engine
        self.embeddings = embeddings
        self.second_guide = second_guide
        self.device = device
        self.threads = threads
        self.quality = quality
        self.baseline = baseline
        self.reviews = reviews

    @_with_its_means
    def scan(self, source: object) -> "Defender":
        """Return self with partition and verdict of `source` (anything that `ImageSource.open` takes).

        Raises:
            ClipguardError: bad input; one line says what to do.
        """
        self._scan(_opened(source))
        # It would be an earlier repair's.
        self.scan_.context.run.retract(FEATURES_FILE)
        return self

    @_with_its_means
    def fit(
        self, source: object, *, model: str | Path | nn.Module | None = None, spec: ModelSpec | None = None
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
        view = None if like is None else like.preprocessing
        self._scan(opened, model if isinstance(model, (str, Path)) else None, view)
        if config.by == "retrain" and not config.drop_anyway:
            check_drop(self.scan_.data, self.scan_.partition)
        if given is None:
            self.trained_on_ = with_held_out(self.scan_)
            self.before_, self.spec_, origin, of_victim = self._train_victim(config)
        else:
            self.before_, self.spec_, origin, of_victim = given.model, given.spec, given.origin, list[str]()
            self.trained_on_ = for_model(self.scan_, self.spec_.preprocessing)
            check_fit(given, self.trained_on_)
        of_repair = [*of_victim, *self._repaired(config, like, origin)]
        others = [line for line in warnings_of(self.scan_) if line not in of_repair]
        self.warnings_ = [*of_repair, *(given.notes if given else ()), *others]
        run = self.scan_.context.run
        if "feature_separation" not in self.stages_:
            # It would be an earlier repair's.
            run.retract(FEATURES_FILE)
        return self

    @property
    def samples_(self) -> dict[str, Any]:
        """The columns of samples.parquet by name, rows in the order of the source as those of `partition_`.

        They are read when they are first asked for: they may be large.
        """
        if self._samples is None:
            table = read_table(self.scan_.context.run.path / SAMPLES)
            order = source_order(table["row"])
            self._samples = {name: values[order] for name, values in table.items()}
        return self._samples

    @property
    def stages_(self) -> dict[str, FinishedStage]:
        """The finished stages by name, in their order."""
        return self.scan_.context.finished

    @property
    def partition_(self) -> Partition:
        """What becomes of every sample."""
        return self.scan_.partition

    def _train_victim(self, config: DefenseConfig) -> tuple[Normalized, ModelSpec, str, list[str]]:
        """Return a model that is trained here, how it is built, its key, and what is to be said of it."""
        scan = self.trained_on_
        spec = spec_to_train(config, scan.num_classes, scan.data.images.shape[1:3], None)
        reason = names_against_mirroring(scan.data.class_names) if config.victim.flip else ""
        recipe = replace(config.victim, flip=config.victim.flip and not reason)
        stage = train(scan, ~scan.partition.has(State.HELD_OUT), spec, VICTIM, recipe)
        notes = [f"the model was trained without mirrored images: {reason}"] if reason else []
        return load(stage.path / "model.safetensors", spec), spec, stage.key, notes

    def _repaired(self, config: DefenseConfig, like: ModelSpec | None, origin: str) -> list[str]:
        """Repair the model, unless nothing is flagged; return what is to be said of it."""
        run, stage, notes = self.scan_.context.run, None, list[str]()
        if self.partition_.flagged.any() and config.by == "retrain":
            stage, notes = self._retrain(config, like)
        elif self.partition_.flagged.any():
            stage = self._unlearn(origin)
        if stage is None:
            self.model_, self.history_ = self.before_, {}
            with run.publishing("model.safetensors") as path:
                save(self.model_, self.spec_, path, self.scan_.data.class_names)
            return [CLEARED if self.partition_.flagged.any() else UNTOUCHED]
        self.history_ = read_table(stage.path / "history.parquet")
        run.publish(stage.path / "model.safetensors", "model.safetensors")
        return [*notes, *notes_of(stage)]

    def _retrain(self, config: DefenseConfig, like: ModelSpec | None) -> tuple[FinishedStage, list[str]]:
        """Train a model without the flagged samples; return its stage and what is to be said of it."""
        scan = self.trained_on_
        self.spec_ = spec_to_train(config, scan.num_classes, scan.data.images.shape[1:3], like)
        rows = scan.partition.clean | scan.partition.has(State.UNCERTAIN)
        recipe = recipe_like(scan, self.before_)
        stage = train(scan, rows, self.spec_, RETRAINING, recipe)
        self.model_ = load(stage.path / "model.safetensors", self.spec_)
        return stage, [NOT_MIRRORED] if config.victim.flip and not recipe.flip else []

    def _unlearn(self, origin: str) -> FinishedStage | None:
        self.trained_on_ = with_model_triggers(self.trained_on_, self.scan_)
        held_out = self.trained_on_.partition.has(State.HELD_OUT)
        unseen = np.flatnonzero(held_out & self.partition_.clean)
        if len(unseen) > MOST_UNSEEN:
            draw = self.scan_.context.seed(Stream.UNLEARNING).child("unseen").generator()
            unseen = np.sort(draw.choice(unseen, MOST_UNSEEN, replace=False))
        stage = repair(self.trained_on_, self.before_, self.spec_, origin, unseen)
        if stage is not None:
            self.model_ = _weights_into(self.before_, stage)
        return stage

    def _reporting(self) -> Progress:
        """Return what is called as work goes on."""
        return self.progress or (lambda step, done, total: None)

    def _scan(
        self, source: ImageSource, model: str | Path | None = None, model_view: Preprocessing | None = None
    ) -> "Defender":
        config, guide = self.config or DefenseConfig(), _guide_of(self.guide) or ClipGuide()
        second, progress = _guide_of(self.second_guide), self._reporting()
        # First of all: whether the guide's weights can be had shows at once, a large data set takes its time.
        about = _about_guide(guide)
        about_second = second and _about_second_guide(second, guide)
        if self.baseline is not None:
            if self.embeddings is not None:
                raise ClipguardError(
                    "embeddings of another tool and a baseline were given: leave one of the two out"
                )
            check_baseline(self.baseline, Path(self.run_dir), guide)
        _check_groups(source)
        reviews = given_reviews(Path(self.run_dir), self.baseline, self.reviews)
        run = open_run(self.run_dir, source, guide, config, progress)
        run.manifest["guide"] = about
        run.manifest["second_guide"] = about_second
        run.manifest["model"] = model and {"path": str(model), **described(Path(model))}
        context = Context(
            run=run,
            source=source,
            common_size=common_size(source),
            guide=guide,
            config=config,
            progress=progress,
            engine=self.engine or LocalEngine(),
            model_view=model_view,
            quality=self.quality,
            embeddings_from=self.embeddings,
            second_guide=second,
            baseline=self.baseline,
            reviews=reviews,
        )
        run.manifest["options"] = chosen_options(context)
        self.scan_: Scan = scan(context)
        self._samples = None
        self.triggers_ = self.scan_.triggers
        self.verdict_ = verdict(self.scan_)
        self.warnings_ = warnings_of(self.scan_)
        return self


def _guide_of(guide: ClipGuide | str | None) -> ClipGuide | None:
    return guide_from_name(guide) if isinstance(guide, str) else guide


def _check_groups(source: ImageSource) -> None:
    if source.groups is not None and len(source) and (source.groups == source.groups[0]).all():
        raise ClipguardError(
            f"all samples of {source.location} are of one group, and none may be scored by what has learned "
            "from its group: give another --group-column, or none (in Python: Columns)"
        )


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


def _about_second_guide(second: ClipGuide, guide: ClipGuide) -> dict[str, Any]:
    if second.fingerprint == guide.fingerprint:
        raise ClipguardError(f"second guide {second.name} is the first one: give another, or leave it out")
    return _about_guide(second)


def _opened(source: object) -> ImageSource:
    return source if isinstance(source, ImageSource) else ImageSource.open(source)


def _weights_into(like: Normalized, stage: FinishedStage) -> Normalized:
    """Return a copy of the model `like` with the weights of a stage, also where no name can build it."""
    model = copy.deepcopy(like)
    model.network.load_state_dict(load_file(stage.path / "model.safetensors"))
    return model.eval()
