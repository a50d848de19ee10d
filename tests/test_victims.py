"""compute.classifiers: trained as the recipe says, and found again by content."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from clipguard.compute import classifiers
from clipguard.compute.classifiers import ClassifierConfig, cached_classifier, train_classifier
from clipguard.compute.training import Recipe, cross_entropy, fit
from clipguard.models.spec import ModelSpec, build
from clipguard.seeds import Seed
from tiny_runs import poisoned_set

DATA, _ = poisoned_set(60)
CONFIG = ClassifierConfig(
    spec=ModelSpec.sized(architecture="shallow-4", num_classes=3, input_size=(16, 16)),
    recipe=Recipe(epochs=1, lr=0.05, batch_size=16, crop=0.0),
    seed=Seed(3).child("victim"),
)


def weights(model: torch.nn.Module) -> list[bytes]:
    return [value.numpy().tobytes() for value in model.state_dict().values()]


def test_the_second_call_reads_what_the_first_one_trained(tmp_path):
    epochs = []
    first, seconds = cached_classifier(CONFIG, DATA, tmp_path, on_epoch=epochs.append)
    second, same = cached_classifier(CONFIG, DATA, tmp_path, on_epoch=epochs.append)
    assert epochs == [1]
    assert weights(first) == weights(second)
    assert seconds == same > 0


def test_the_files_are_weights_and_a_note(tmp_path):
    cached_classifier(CONFIG, DATA, tmp_path, np.arange(60) % 2 == 0)
    files = sorted(path.suffix for path in (tmp_path / "victims").glob("[!.]*"))
    assert files == [".json", ".safetensors"]
    note = json.loads(next((tmp_path / "victims").glob("*.json")).read_text())
    assert note.keys() == {"seconds", "threads", "recipe"}


def test_a_classifier_is_trained_on_its_rows_only_by_the_streams_of_its_seed():
    rows = np.arange(0, 60, 2)
    model, history = train_classifier(CONFIG, DATA, rows)
    expected = build(CONFIG.spec, CONFIG.seed.child("init"))
    fit(expected, DATA.images, rows, cross_entropy(DATA.labels), CONFIG.recipe, CONFIG.seed.child("fit"))
    assert weights(model) == weights(expected)
    assert len(history.columns["loss"]) == 1
    labels = DATA.labels.copy()
    labels[1::2] = 0
    other = replace(DATA, labels=labels)
    assert weights(train_classifier(CONFIG, other, rows)[0]) == weights(model)
    other_start = train_classifier(CONFIG, DATA, rows, initial=Seed(9))[0]
    assert weights(other_start) != weights(model)


def keys(tmp_path):
    return {path.stem for path in (tmp_path / "victims").glob("*.json")}


def test_other_rows_labels_versions_or_numbers_of_threads_give_another_classifier(tmp_path, monkeypatch):
    cached_classifier(CONFIG, DATA, tmp_path)
    cached_classifier(CONFIG, DATA, tmp_path, np.arange(60) != 7)
    relabelled = replace(DATA, labels=(DATA.labels + 1) % 3)
    cached_classifier(CONFIG, relabelled, tmp_path)
    assert len(keys(tmp_path)) == 3
    monkeypatch.setattr(classifiers, "VERSION", classifiers.VERSION + 1)
    cached_classifier(CONFIG, DATA, tmp_path)
    assert len(keys(tmp_path)) == 4
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    cached_classifier(CONFIG, DATA, tmp_path)
    assert len(keys(tmp_path)) == 5


def test_images_are_hashed_the_same_in_parts_as_whole(tmp_path, monkeypatch):
    cached_classifier(CONFIG, DATA, tmp_path)
    monkeypatch.setattr(classifiers, "_ROWS_AT_ONCE", 7)
    cached_classifier(CONFIG, DATA, tmp_path)
    assert len(keys(tmp_path)) == 1


@pytest.mark.parametrize(
    "other",
    [
        replace(CONFIG, seed=Seed(4).child("victim")),
        replace(CONFIG, recipe=replace(CONFIG.recipe, lr=0.06)),
        replace(CONFIG, spec=replace(CONFIG.spec, architecture="shallow-5")),
    ],
    ids=["seed", "recipe", "net"],
)
def test_other_settings_give_another_victim(tmp_path, other):
    cached_classifier(CONFIG, DATA, tmp_path)
    cached_classifier(other, DATA, tmp_path)
    assert len(list((tmp_path / "victims").glob("*.safetensors"))) == 2


def test_a_training_that_was_killed_before_its_note_is_done_again(tmp_path):
    cached_classifier(CONFIG, DATA, tmp_path)
    note = next((tmp_path / "victims").glob("*.json"))
    note.unlink()
    epochs = []
    cached_classifier(CONFIG, DATA, tmp_path, on_epoch=epochs.append)
    assert epochs == [1]
    assert note.exists()


def test_a_training_that_was_killed_in_the_middle_goes_on_there(tmp_path):
    longer = replace(CONFIG, recipe=replace(CONFIG.recipe, epochs=3))
    whole, _ = cached_classifier(longer, DATA, tmp_path / "whole")

    def kill(done):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_classifier(longer, DATA, tmp_path / "cut", on_epoch=kill)
    (kept,) = (tmp_path / "cut" / "victims").glob("*.checkpoint")
    before = kept.stat().st_ino
    steps = []
    resumed, _ = cached_classifier(
        longer, DATA, tmp_path / "cut", on_epoch=lambda done: steps.append(kept.stat().st_ino)
    )
    assert steps[:2] == [before, before], "an epoch that was there was trained again"
    assert steps[2] != before
    assert weights(resumed) == weights(whole)
    assert not kept.exists()
