"""`Defender`: the pipeline behind scikit-learn's contract, and the summary of a run."""

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from torch import nn

from clipguard.clip.zero_shot import ClipGuide
from clipguard.compute.inference import classifier_logits
from clipguard.data import ImageSource
from clipguard.data.decode import common_size
from clipguard.data.provenance import hashing
from clipguard.errors import ClipguardError
from clipguard.models.spec import ModelSpec, Normalized, build, check_sound, load, read_spec, weights_digest
from clipguard.pipeline import (
    FEATURES_FILE,
    DefenseConfig,
    Report,
    Scan,
    cure,
    inverted_triggers,
    scan,
    spec_to_train,
    thumbnail_size,
    train_on,
)
from clipguard.runs import RunFolder, SourceInfo, Stage, described, read_json, read_table, write_json
from clipguard.seeds import Seed
from clipguard.types import Split

CERTAIN_SHARE = 0.002
"""Flagged share below which nothing is called above chance."""


class Defender:
    """Scans an untrusted data set and cures a model that was trained on it.

    The constructor only stores. After `scan`: `samples_` (columns of samples.parquet), `split_`, `verdict_`,
    `triggers_` (what the flagged samples share: none, one, or one a target). After `fit` also `model_`
    (cured), `before_` (the victim), `spec_`, `history_`. Every stage is cached in `run_dir`; running again
    resumes.

    Args:
        guide: the CLIP that reads the labels; the default needs its weights from the hub or its cache.
        run_dir: folder of the run.
        plan: all other settings.
        report: called with (stage, done, total) as work goes on.
    """

    def __init__(
        self,
        guide: ClipGuide | None = None,
        run_dir: str | Path = "runs/clipguard",
        *,
        plan: DefenseConfig | None = None,
        report: Report | None = None,
    ) -> None:
        self.guide = guide
        self.run_dir = run_dir
        self.plan = plan
        self.report = report

    def scan(self, source: object, *, model_size: tuple[int, int] | None = None) -> "Defender":
        """Return self with the split and the verdict on `source` (anything that `ImageSource.open` takes).

        Args:
            source: the untrusted data set.
            model_size: input height and width of a model that `fit` is to cure later, which then finds this
                scan again.

        Raises:
            ClipguardError: bad input; one line says what to do.
        """
        return self._scan(_opened(source), reserve=False, model_size=model_size)

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
        opened = _opened(source)
        plan = self.plan or DefenseConfig()
        victim = None if model is None else _victim(model, spec, len(opened.class_names))
        like = None if victim is None else victim[1]
        if victim is None or plan.by == "retrain":
            # What a scan takes minutes for must not end in a model that cannot be built.
            wanted = like.input_size if like else plan.size or thumbnail_size(opened)
            trial = spec_to_train(plan, len(opened.class_names), wanted, like)
            check_sound(build(trial, Seed(0)), trial)
        file = {"path": str(model), **described(Path(model))} if isinstance(model, (str, Path)) else None
        size = like.input_size if like else None
        self._scan(opened, reserve=victim is None, model_size=size, model=file)
        found = self.found_
        stages = dict(found.stages)
        if victim is None:
            self.spec_, trained = train_on(found, ~found.reserved, "victim", plan, self.report)
            stages["victim"], origin = trained, trained.key
            self.before_ = load(trained.path / "model.safetensors", self.spec_)
        else:
            self.before_, self.spec_, origin = victim
        if plan.by == "retrain":
            keep = found.split.admissible & ~found.reserved
            self.spec_, stage = train_on(found, keep, "retrain", plan, self.report, like)
            self.model_ = load(stage.path / "model.safetensors", self.spec_)
        else:
            stage = cure(found, self.before_, self.spec_, origin, plan, self.report)
            self.model_ = _weights_into(self.before_, self.spec_, stage)
        self.history_ = read_table(stage.path / "history.parquet")
        _publish(found, stage)
        self.stages_ = {**found.stages, **stages, "retrain" if plan.by == "retrain" else "cure": stage}
        return self

    def _scan(
        self,
        source: ImageSource,
        reserve: bool,
        model_size: tuple[int, int] | None = None,
        model: dict[str, Any] | None = None,
    ) -> "Defender":
        plan = self.plan or DefenseConfig()
        guide, source = self.guide or ClipGuide(), hashing(source)
        # First of all: whether its weights can be had shows at once, and a large data set takes its time.
        verified_by, prompts = guide.weights_verified_by, guide.prompts
        tell, n = self.report or (lambda stage, done, total: None), len(source)
        tell("fingerprint", 0, n)
        info = SourceInfo(
            kind=source.kind,
            location=source.location,
            fingerprint=source.fingerprint,
            n=n,
            class_names=source.class_names,
        )
        tell("fingerprint", n, n)
        config = {
            "guide": guide.name,
            "templates": prompts,
            "plan": json.loads(json.dumps(asdict(plan))),
        }
        run = RunFolder.open(self.run_dir, info, config, plan.seed)
        run.manifest["guide"] = {
            "name": guide.name,
            "sha256": guide.clip.fingerprint,
            "preprocessing_sha256": guide.clip.preprocessing_sha256,
            "weights_verified_by": verified_by,
        }
        run.manifest["model"] = model
        self.found_: Scan = scan(source, guide, run, plan, reserve, self.report, model_size=model_size)
        self.split_: Split = self.found_.split
        self.samples_ = read_table(run.path / "samples.parquet")
        self.triggers_ = inverted_triggers(self.found_, plan)
        self.verdict_ = verdict(self.found_)
        self.stages_ = self.found_.stages
        self.warnings_ = guide.warnings_for(source.class_names) + _data_warnings(source, self.found_)
        if verified_by is None:
            self.warnings_.append(
                f"neither this release nor the hub verifies the weights of guide {guide.name}: compare "
                f"their sha256 {guide.clip.fingerprint} with one from somebody you trust"
            )
        return self

    def own_figures(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return accuracies before and after without a test set, with what they were measured on.

        A victim trained here is measured on the reserved samples that the split calls clean. A given model
        has seen all of the data: its accuracy on the clean samples is labelled as seen in training.
        """
        found = self.found_
        where = found.split.clean & (found.reserved if found.reserved.any() else True)
        label = "reserved samples" if found.reserved.any() else "seen in training"
        rows = np.flatnonzero(where)
        if not len(rows):
            return {"measured_on": "nothing: no clean sample"}, {"measured_on": "nothing: no clean sample"}
        figures = []
        for model in (self.before_, self.model_):
            right = classifier_logits(model, found.data.images[rows]).argmax(1) == found.data.labels[rows]
            figures.append({"accuracy": float(right.mean()), "measured_on": label, "n": len(rows)})
        return figures[0], figures[1]


def _publish(found: Scan, stage: Stage) -> None:
    """Publish the model of a stage; what activations said is of an earlier one, unless they were asked."""
    found.run.publish(stage.path / "model.safetensors", "model.safetensors")
    if "activations" not in found.stages:
        found.run.retract(FEATURES_FILE)


def _opened(source: object) -> ImageSource:
    return source if isinstance(source, ImageSource) else ImageSource.open(source)


def _victim(
    model: str | Path | nn.Module, spec: ModelSpec | None, classes: int
) -> tuple[Normalized, ModelSpec, str]:
    """Return the model to cure, its spec and the hash of its weights.

    Raises:
        ClipguardError: no spec for a foreign file or a module, another class count, or an unreadable file.
    """
    if isinstance(model, nn.Module):
        if spec is None:
            raise ClipguardError(
                "a module needs a ModelSpec: its input size, mean, std and number of classes"
            )
        # A copy: evaluation mode would otherwise be switched on in the user's own module.
        loaded = copy.deepcopy(model if isinstance(model, Normalized) else Normalized(model, spec))
        known: ModelSpec | None = spec
    else:
        path = Path(model)
        known = spec or read_spec(path)
        if known is None:
            raise ClipguardError(
                f"model {path} does not say its architecture: give --architecture (and --input-size)"
            )
        loaded = load(path, known)
    assert known is not None
    if known.num_classes != classes:
        raise ClipguardError(f"the model has {known.num_classes} classes but the data set names {classes}")
    check_sound(loaded, known)
    return loaded.eval(), known, weights_digest(loaded)


def _weights_into(like: Normalized, spec: ModelSpec, stage: Stage) -> Normalized:
    """Return a copy of the model `like` with the weights of a stage, also where no name can build it."""
    model = copy.deepcopy(like)
    model.network.load_state_dict(load_file(stage.path / "model.safetensors"))
    return model.eval()


def verdict(found: Scan) -> dict[str, Any]:
    """Return the verdict as far as it is built: always undecided, with the reasons in plain words."""
    labels = int(found.mislabelled.sum())
    flagged, n = int(found.split.triggered.sum()) - labels, len(found.data)
    agreement = float(np.mean(found.guide.logits.argmax(1) == found.data.labels))
    chance = 1 / len(found.data.class_names)
    reasons = [f"{flagged} of {n} samples ({flagged / n:.1%}) share a pattern that the others lack"]
    if flagged < CERTAIN_SHARE * n and not labels:
        reasons = [f"nothing above chance: {flagged} of {n} samples share a pattern that the others lack"]
    if labels:
        fed = sorted({found.data.class_names[i] for i in found.data.labels[found.mislabelled]})
        reasons.append(
            f"{labels} labels without such a pattern look planted: far more implausible ones lead into "
            f"{', '.join(fed[:3])} than out of it"
        )
    if agreement < 2 * chance:
        reasons.append(
            f"the guide agrees with only {agreement:.1%} of the labels, near chance ({chance:.1%})"
        )
    reasons.append("a verdict with error control is not built yet")
    return {"verdict": "undecided", "reasons": reasons}


def _data_warnings(source: ImageSource, found: Scan) -> list[str]:
    out = []
    if source.empty_classes:
        out.append(
            f"{len(source.empty_classes)} classes have no image: {', '.join(source.empty_classes[:5])}"
        )
    largest, seen = common_size(source).largest, found.view
    if max(largest) > 1.5 * max(seen):
        lost = -(-max(largest) // max(seen))
        out.append(
            f"images of up to {largest[0]} x {largest[1]} are read at {seen[0]} x {seen[1]}: a trigger of "
            f"under {lost} pixels a side leaves no trace there; raise --size to look for it"
        )
    if found.split.starved:
        names = ", ".join(found.split.starved[:5])
        out.append(f"{len(found.split.starved)} classes have too few clean samples to trust: {names}")
    if unreadable := read_json(found.stages["read"].path / "unreadable.json"):
        out.append(
            f"{len(unreadable)} images could not be read and were skipped, first {unreadable[0]['id']!r} "
            f"({unreadable[0]['reason']}); unreadable.json in the run folder lists them all"
        )
    return out


def write_summary(defender: Defender, command: str, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return the run's summary, as published in summary.json for the report and `--json`."""
    found = defender.found_
    part, stages = found.split, defender.stages_
    unreadable = read_json(found.stages["read"].path / "unreadable.json")
    counts = {"clean": int(part.clean.sum()), "triggered": int(part.triggered.sum())}
    summary = {
        "command": command,
        "verdict": defender.verdict_,
        "data": {
            "location": found.run.manifest["source"]["location"],
            "n": len(found.data),
            "classes": list(found.data.class_names),
            "unreadable": len(unreadable),
            "size": list(found.data.images.shape[1:3]),
        },
        "guide": {
            "name": found.guide.source,
            "scale": found.guide.scale,
            "agreement": float(np.mean(found.guide.logits.argmax(1) == found.data.labels)),
        },
        "split": {**counts, "unused": len(found.data) - sum(counts.values()), "starved": list(part.starved)},
        "seconds": {name: round(stage.seconds, 2) for name, stage in stages.items()},
        "warnings": defender.warnings_,
        "seed": found.run.manifest["seed"],
        "run_dir": str(found.run.path),
        **extra,
    }
    with found.run.publishing("summary.json") as path:
        write_json(path, summary)
    return summary
