"""compute.classifiers: found again by content, under the names that earlier benchmarks wrote."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from clipguard.compute.classifiers import ClassifierConfig, trained
from clipguard.compute.training import Recipe
from clipguard.models.spec import ModelSpec
from clipguard.seeds import Seed
from tiny_runs import poisoned_set

DATA, _ = poisoned_set(60)
SCHOOLING = ClassifierConfig(
    spec=ModelSpec(architecture="shallow-4", num_classes=3, input_size=(16, 16)),
    recipe=Recipe(epochs=1, lr=0.05, batch_size=16, crop=0.0),
    seed=Seed(3).child("victim"),
)


def weights(model: torch.nn.Module) -> list[bytes]:
    return [value.numpy().tobytes() for value in model.state_dict().values()]


def test_the_second_call_reads_what_the_first_one_trained(tmp_path):
    epochs = []
    first, seconds = trained(DATA, SCHOOLING, tmp_path, on_epoch=epochs.append)
    second, same = trained(DATA, SCHOOLING, tmp_path, on_epoch=epochs.append)
    assert epochs == [1]
    assert weights(first) == weights(second)
    assert seconds == same > 0


def test_the_file_is_named_by_the_hash_of_images_labels_and_settings(tmp_path):
    keep = np.arange(60) % 2 == 0
    trained(DATA, SCHOOLING, tmp_path, keep)
    digest = hashlib.sha256(DATA.images[keep].tobytes() + DATA.labels[keep].tobytes())
    digest.update(repr((SCHOOLING.spec, SCHOOLING.recipe, SCHOOLING.seed)).encode())
    name = digest.hexdigest()[:20]
    files = sorted(path.name for path in (tmp_path / "victims").glob("[!.]*"))
    assert files == [f"{name}.json", f"{name}.safetensors"]
    note = json.loads((tmp_path / "victims" / files[0]).read_text())
    assert note.keys() == {"seconds", "threads", "recipe"}


def test_the_settings_are_written_in_the_words_that_earlier_keys_were_made_of():
    # A victim takes 10 to 20 minutes: a renamed or reordered field would train all of them again.
    spec = ModelSpec(num_classes=10, input_size=(32, 32))
    recipe = Recipe(epochs=25, lr=0.05, crop=0.0)
    assert repr((spec, recipe, Seed(0).child("victim"))) == (
        "(ModelSpec(architecture='preactresnet18-16', num_classes=10, input_size=(32, 32), "
        "mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)), Recipe(epochs=25, batch_size=128, optimizer='sgd', "
        "lr=0.05, weight_decay=0.0005, warmup=0.2, constant=False, crop=0.0, flip=True), "
        "Seed(root=0, path=('victim',)))"
    )


@pytest.mark.parametrize(
    "other",
    [
        replace(SCHOOLING, seed=Seed(4).child("victim")),
        replace(SCHOOLING, recipe=replace(SCHOOLING.recipe, lr=0.06)),
        replace(SCHOOLING, spec=replace(SCHOOLING.spec, architecture="shallow-5")),
    ],
    ids=["seed", "recipe", "net"],
)
def test_other_settings_give_another_victim(tmp_path, other):
    trained(DATA, SCHOOLING, tmp_path)
    trained(DATA, other, tmp_path)
    assert len(list((tmp_path / "victims").glob("*.safetensors"))) == 2


def test_a_training_that_was_killed_before_its_note_is_done_again(tmp_path):
    trained(DATA, SCHOOLING, tmp_path)
    note = next((tmp_path / "victims").glob("*.json"))
    note.unlink()
    epochs = []
    trained(DATA, SCHOOLING, tmp_path, on_epoch=epochs.append)
    assert epochs == [1]
    assert note.exists()


def test_a_training_that_was_killed_in_the_middle_goes_on_there(tmp_path):
    longer = replace(SCHOOLING, recipe=replace(SCHOOLING.recipe, epochs=3))
    whole, _ = trained(DATA, longer, tmp_path / "whole")

    def kill(done):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(DATA, longer, tmp_path / "cut", on_epoch=kill)
    (kept,) = (tmp_path / "cut" / "victims").glob("*.checkpoint")
    before = kept.stat().st_ino
    steps = []
    resumed, _ = trained(
        DATA, longer, tmp_path / "cut", on_epoch=lambda done: steps.append(kept.stat().st_ino)
    )
    assert steps[:2] == [before, before], "an epoch that was there was trained again"
    assert steps[2] != before
    assert weights(resumed) == weights(whole)
    assert not kept.exists()
