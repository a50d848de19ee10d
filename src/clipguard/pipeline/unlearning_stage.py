"""What computes the stage of unlearning: how, on what, until when, and what it cost."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from clipguard.compute.recipes import Recipe
from clipguard.compute.threads import intra_op
from clipguard.errors import ClipguardError
from clipguard.mitigation.gauge import Gauge, GaugeReading, gauge_of, has_done_its_work, spared_rows
from clipguard.mitigation.rate import fitting_optimizer, suited_recipe
from clipguard.mitigation.repair_words import repair_words
from clipguard.mitigation.trigger_augmentation import trigger_augmented
from clipguard.mitigation.unlearning import UnlearningConfig, lesson, unlearn
from clipguard.models.spec import Normalized
from clipguard.pipeline.computing import Repair, keep
from clipguard.pipeline.scan import EpochProgress, write_notes
from clipguard.runs import read_json, resume_folder, write_json
from clipguard.seeds import Seed, Stream
from clipguard.types import ImageSet, Partition, Scores, State, StepProgress

REPAIR_FILE: Final = "repair.json"
"""Optimiser, rate, the trials that chose it, and accuracy and following before and after."""


NOT_MIRRORED: Final = (
    "no image was mirrored in the repair: the model takes mirrored images of some classes for others"
)


def unlearn_flagged(given: Repair, folder: Path, progress: StepProgress) -> None:
    """Write the repaired model."""
    with intra_op(given.scan.context.run.manifest["threads"]):
        _unlearn_flagged(given, folder, progress)


def _unlearn_flagged(given: Repair, folder: Path, progress: StepProgress) -> None:
    scan = given.scan
    config, seed = given.unlearning, scan.context.seed(Stream.UNLEARNING)
    spared = given.unseen
    if not len(spared):
        spared = spared_rows(scan.data.labels, scan.partition.clean, seed.child("spared"))
    partition = scan.partition.moved(spared, State.HELD_OUT)
    gauge = gauge_of(scan.data, partition, scan.triggers, spared)
    taught = _augmented(given, partition, seed)
    config, trials = _suited(given.victim, taught, config, gauge, seed, folder)
    trials |= {"flip": config.recipe.flip}
    counter = EpochProgress(config.recipe.epochs, progress)
    model, before = copy.deepcopy(given.victim), gauge.read(given.victim) if len(spared) else None
    history = unlearn(
        model,
        *taught,
        config,
        seed,
        on_epoch=counter,
        checkpoint=resume_folder(folder) / "checkpoint.safetensors",
        done=lambda now: before is not None and has_done_its_work(before, gauge.read(now)),
    )
    counter.finish()
    keep(folder, model, given.spec, scan.data, history)
    _note(given, folder, trials, before, None if before is None else gauge.read(model))


def chosen_recipe(folder: Path, recipe: Recipe) -> Recipe:
    """Return a recipe with optimiser, rate and mirroring as a finished stage has taken them."""
    values = read_json(folder / REPAIR_FILE)
    flip = recipe.flip and values.get("flip", True)
    return replace(recipe, optimizer=values["optimizer"], lr=values["rate"], flip=flip)


def _augmented(given: Repair, partition: Partition, seed: Seed) -> tuple[ImageSet, Partition, Scores]:
    """Return what is taught: the data, longer by copies with the reconstructed triggers, if there are any."""
    scan = given.scan
    share = scan.context.config.unlearning.augment
    if not scan.triggers or share <= 0:
        return scan.data, partition, scan.guide

    copies = seed.child("copies")
    return trigger_augmented(scan.data, partition, scan.guide, scan.triggers, share, copies)


def _suited(
    victim: Normalized,
    taught: tuple[ImageSet, Partition, Scores],
    config: UnlearningConfig,
    gauge: Gauge,
    seed: Seed,
    folder: Path,
) -> tuple[UnlearningConfig, dict[str, Any]]:
    """Return the settings with optimiser and rate as they suit the net, and the trials as JSON values."""
    recipe = config.recipe
    if config.rate is not None:
        # The optimiser of CGD is the paper's.
        recipe = replace(fitting_optimizer(victim, recipe), lr=config.rate)
        return replace(config, recipe=recipe), {
            "optimizer": recipe.optimizer,
            "rate": recipe.lr,
            "trials": [],
        }
    noted = resume_folder(folder) / "trials.json"
    try:
        values = read_json(noted)
        chosen = replace(recipe, optimizer=values["optimizer"], lr=values["rate"])
    except (ClipguardError, KeyError, TypeError):
        recipe = fitting_optimizer(victim, recipe)
        images = taught[0].images
        chosen, trials = suited_recipe(
            victim, images, *lesson(*taught, config), recipe, gauge, seed.child("range test")
        )
        values = {
            "optimizer": chosen.optimizer,
            "rate": chosen.lr,
            "trials": [one._asdict() for one in trials],
        }
        write_json(noted, values)
    return replace(config, recipe=chosen), values


def _note(
    given: Repair,
    folder: Path,
    trials: dict[str, Any],
    before: GaugeReading | None,
    after: GaugeReading | None,
) -> None:
    """Write what the gauge said, and what of it and of mirroring the user should know."""
    notes = [] if given.bears_mirroring else [NOT_MIRRORED]
    if before is None or after is None:
        write_json(folder / REPAIR_FILE, {**trials, "readings": []})
        write_notes(folder, notes)
        return
    write_json(folder / REPAIR_FILE, {**trials, "readings": [_plain(before), _plain(after)]})
    notes += repair_words(before, after, trials["rate"], learned=not len(given.unseen))
    write_notes(folder, notes)


def _plain(reading: GaugeReading) -> dict[str, Any]:
    return {
        "n": len(reading.right),
        "accuracy": reading.accuracy,
        "loss": reading.loss,
        "followed": reading.followed,
    }
