"""Every stage of a run, declared once: name, version, title, settings, inputs, and what computes it.

Raise a stage's version with every change of its results: keys hold it, so that no old result is met.
`clipguard.pipeline.scanning.SIGNALS` says in which order a scan runs them.
"""

from dataclasses import asdict, replace
from typing import Any, Final

import numpy as np

from clipguard.clip.known_embeddings import folder_key
from clipguard.detection.label_flow import small_classes
from clipguard.detection.net_configs import ResidualConfig
from clipguard.pipeline import computing, judging, samples
from clipguard.pipeline.baseline import baseline_stage
from clipguard.pipeline.computing import Reading, Repair, Training, View
from clipguard.pipeline.config import DefenseConfig
from clipguard.pipeline.quality_stage import assess_quality
from clipguard.pipeline.scan import Scan
from clipguard.pipeline.unlearning_stage import unlearn_flagged
from clipguard.quality.label_errors import cleanlab_version
from clipguard.runs import Stage
from clipguard.types import array_digest


def _guide_key(scan: Scan) -> list[str]:
    """Return what the guide's scores depend on, beside the embeddings."""
    return [*scan.context.key("embeddings"), scan.context.guide.fingerprint, *scan.data.class_names]


def _nets(config: DefenseConfig) -> dict[str, Any]:
    """Return the settings of the scan's nets."""
    parts = {
        name: asdict(getattr(config, name)) for name in ("early_model", "entropy_map", "trigger_detector")
    }
    return {**parts, "seed": config.seed}


EMBEDDINGS: Final = Stage[Reading](
    name="embeddings",
    version=3,
    title="read the images and ask the guide",
    config=lambda given: {"limits": asdict(given.context.source.limits)},
    # Other heads, activation functions or crops beside the same weights give other embeddings.
    inputs=lambda given: [
        given.context.run.manifest["source"]["key"],
        given.context.guide.clip.fingerprint,
        given.context.guide.clip.preprocessing_sha256,
        *([folder_key(given.context.embeddings_from)] if given.context.embeddings_from else ()),
        *([baseline_stage(given.context.baseline).key] if given.context.baseline else ()),
    ],
    compute=computing.read,
)

SECOND_EMBEDDINGS: Final = replace(
    EMBEDDINGS,
    name="second_embeddings",
    title="ask the second guide",
    inputs=lambda given: [*EMBEDDINGS.inputs(given), *given.context.key("embeddings")],
    compute=computing.read_again,
)


IMAGES: Final = Stage[View](
    name="images",
    version=3,
    title="prepare the images",
    config=lambda given: asdict(given.preprocessing),
    inputs=lambda given: [given.embeddings],
    compute=computing.prepare_images,
)

MODEL_IMAGES: Final = replace(IMAGES, name="model_images")
"""The same as a given model takes them."""


EARLY_MODEL: Final = Stage[Scan](
    name="early_model",
    version=3,
    title="train the early-training model",
    config=lambda scan: {"net": asdict(scan.context.config.early_model), "seed": scan.context.config.seed},
    # Only a residual model learns from the guide's scores.
    inputs=lambda scan: [
        scan.images_key,
        *(_guide_key(scan) if isinstance(scan.context.config.early_model, ResidualConfig) else ()),
    ],
    compute=computing.train_early_model,
)


TRIGGER_DETECTOR: Final = Stage[Scan](
    name="trigger_detector",
    version=4,
    title="look for a trigger",
    config=lambda scan: {
        "detector": asdict(scan.context.config.trigger_detector),
        "seed": scan.context.config.seed,
    },
    inputs=lambda scan: [scan.images_key, *scan.context.key("embeddings"), scan.partition.fingerprint],
    compute=computing.detect_triggers,
)


LABEL_FLOW: Final = Stage[Scan](
    name="label_flow",
    version=7,
    title="compare labels with a linear probe",
    # With two classes, probabilities were rounded otherwise.
    config=lambda scan: {
        "seed": scan.context.config.seed,
        **({"pair": True} if len(np.unique(scan.data.labels)) == 2 else {}),
    },
    inputs=lambda scan: scan.context.key("embeddings"),
    compute=computing.follow_labels,
)


REMOVAL: Final = Stage[Scan](
    name="removal",
    version=1,
    title="train with and without the flagged samples",
    # Groups and the second axis came later than the rest: without any, results are what they were.
    config=lambda scan: {
        **_nets(scan.context.config),
        **({} if scan.data.groups is None else {"groups": True}),
        **({} if judging.scores_of(scan).second_axis is None else {"second_axis": True}),
    },
    inputs=lambda scan: [
        scan.images_key,
        *scan.context.key("early_model", "trigger_detector", "label_flow"),
        scan.partition.fingerprint,
    ],
    compute=judging.compare_beliefs,
)


POWER: Final = Stage[Scan](
    name="power",
    version=3,
    title="scan a copy with known triggers",
    config=lambda scan: {
        **_nets(scan.context.config),
        "label_flow": asdict(scan.context.config.label_flow),
        "copies": scan.context.config.power,
        # Without a class of a handful, label flow is what it was.
        **({"small_classes": True} if small_classes(computing.label_view(scan)).any() else {}),
    },
    inputs=lambda scan: [
        scan.images_key,
        *_guide_key(scan),
        # A copy is scanned by the code of these stages: their keys hold its versions.
        *scan.context.key("early_model", "trigger_detector", "label_flow"),
        scan.partition.fingerprint,
        array_digest(judging.suspected_classes(scan)),
    ],
    compute=judging.measure_power,
)


LABEL_FLOW_REFIT: Final = Stage[Scan](
    name="label_flow_refit",
    version=3,
    title="compare labels with a probe that has not learnt the flagged ones",
    config=lambda scan: asdict(scan.context.config.label_flow),
    inputs=lambda scan: [
        *scan.context.key("label_flow"),
        *_guide_key(scan),
        scan.partition.fingerprint,
        # Which classes are asked follows from tests and causes, which have no stage of their own.
        array_digest(computing.first_label_flow(scan).flagged),
    ],
    compute=computing.refit_label_flow,
)


TRIGGER_INVERSION: Final = Stage[Scan](
    name="trigger_inversion",
    version=3,
    title="reconstruct the trigger",
    config=lambda scan: {"seed": scan.context.config.seed},
    inputs=lambda scan: [scan.images_key, *_guide_key(scan), scan.partition.fingerprint],
    compute=computing.reconstruct_triggers,
)

MODEL_TRIGGER_INVERSION: Final = replace(TRIGGER_INVERSION, name="model_trigger_inversion")
"""The same at the input size of a given model."""


SAMPLES: Final = Stage[Scan](
    name="samples",
    version=4,
    title="write the table of samples",
    config=lambda scan: {"columns": list(scan.columns)},
    inputs=lambda scan: [
        scan.images_key,
        *_guide_key(scan),
        scan.partition.fingerprint,
        *(array_digest(np.asarray(values)) for values in scan.columns.values()),
    ],
    compute=samples.write_samples,
)


QUALITY: Final = Stage[Scan](
    name="quality",
    version=1,
    title="look for duplicates, label errors and odd images",
    # Without cleanlab, label errors are not looked for; another version may name others. Groups came later.
    config=lambda scan: {
        "seed": scan.context.config.seed,
        "cleanlab": cleanlab_version(),
        **({} if scan.data.groups is None else {"groups": True}),
    },
    inputs=lambda scan: [
        scan.images_key,
        *scan.context.key("embeddings"),
        *scan.data.class_names,
        array_digest(scan.partition.flagged),
    ],
    compute=assess_quality,
)


VICTIM: Final = Stage[Training](
    name="victim",
    version=1,
    title="train the model",
    config=lambda given: asdict(given.classifier),
    inputs=lambda given: [given.scan.images_key, array_digest(given.rows)],
    compute=computing.train_classifier,
    threaded=True,
)

RETRAINING: Final = replace(
    VICTIM,
    name="retraining",
    title="train anew without the flagged samples",
)


FEATURE_SEPARATION: Final = Stage[Repair](
    name="feature_separation",
    version=2,
    title="judge labels by the model's features",
    config=lambda given: {
        "separation": asdict(given.scan.context.config.feature_separation),
        "spec": asdict(given.spec),
        "seed": given.scan.context.config.seed,
    },
    inputs=lambda given: [given.scan.images_key, given.scan.partition.fingerprint, given.origin],
    compute=computing.separate_features,
)


UNLEARNING: Final = Stage[Repair](
    name="unlearning",
    version=5,
    title="unlearn the flagged samples",
    config=lambda given: {
        "unlearning": asdict(given.unlearning),
        "spec": asdict(given.spec),
        "seed": given.scan.context.config.seed,
        # CGD's loss was one mean over both sides before.
        **({"loss version": 2} if given.unlearning.loss == "cgd" else {}),
    },
    inputs=lambda given: [
        given.scan.images_key,
        *_guide_key(given.scan),
        given.scan.partition.fingerprint,
        *(f"{one.label} {array_digest(one.scale, one.shift)}" for one in given.scan.triggers),
        given.origin,
        array_digest(given.unseen),
    ],
    compute=unlearn_flagged,
    threaded=True,
)


STAGES: Final[tuple[Stage[Any], ...]] = (
    EMBEDDINGS,
    SECOND_EMBEDDINGS,
    IMAGES,
    EARLY_MODEL,
    TRIGGER_DETECTOR,
    LABEL_FLOW,
    REMOVAL,
    LABEL_FLOW_REFIT,
    TRIGGER_INVERSION,
    SAMPLES,
    QUALITY,
    POWER,
    VICTIM,
    MODEL_IMAGES,
    MODEL_TRIGGER_INVERSION,
    FEATURE_SEPARATION,
    UNLEARNING,
    RETRAINING,
)


def versions() -> dict[str, int]:
    """Return the version of every stage's code, for the keys of what is built on them."""
    return {stage.name: stage.version for stage in STAGES}
