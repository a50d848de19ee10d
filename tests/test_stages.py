"""pipeline.stages: declared values whose keys hold their version, so that a changed one is computed anew."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from clipguard.compute.device import CPU, Device, computing_on
from clipguard.detection.label_flow import LabelFlow
from clipguard.errors import ClipguardError
from clipguard.models.spec import ModelSpec, build
from clipguard.pipeline import computing, scanning
from clipguard.pipeline import defender as defender_module
from clipguard.pipeline import repair as repair_module
from clipguard.pipeline.defender import Defender
from clipguard.pipeline.stages import STAGES, versions
from clipguard.runs import RunFolder, Stage, read_array, read_json, write_array, write_json
from clipguard.seeds import Seed
from tiny_runs import CONFIG, GUIDE, folder_of, poisoned_set, source_of

STAND_ON = {
    "victim": {"unlearning"},
    "early_model": {"removal"},
    "trigger_detector": {"removal"},
    "label_flow": {"removal"},
}
"""What holds a stage's key among its inputs; all but `label_flow` hold that of `images`, or the partition."""


@pytest.fixture(scope="module")
def source():
    return source_of(poisoned_set()[0])


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    return Defender(GUIDE, tmp_path_factory.mktemp("whole") / "run", config=CONFIG).fit(source)


@pytest.fixture
def run(whole, tmp_path):
    """Return a copy of the run folder."""
    shutil.copytree(whole.run_dir, tmp_path / "run")
    return tmp_path / "run"


def changed(patch, name, **changes):
    """Declare a stage otherwise, wherever it is used."""
    for module in (scanning, repair_module, defender_module):
        for attribute, value in list(vars(module).items()):
            if isinstance(value, Stage) and value.name == name:
                patch.setattr(module, attribute, replace(value, **changes))


def computed(defender):
    return {name for name, stage in defender.stages_.items() if not stage.cached}


def test_every_stage_has_a_name_and_a_title_of_its_own():
    names, titles = ([getattr(stage, part) for stage in STAGES] for part in ("name", "title"))
    assert len(set(names)) == len(names)
    # Images and triggers at another size are made by the same work, which is called the same.
    again = {"model_images", "model_trigger_inversion"}
    own = [title for name, title in zip(names, titles, strict=True) if name not in again]
    assert len(set(own)) == len(own)
    assert all(title == title.lower().strip() and " " in title for title in titles)


def test_the_stages_that_modules_run_are_all_in_the_list():
    used = {
        value.name
        for module in (scanning, repair_module, defender_module)
        for value in vars(module).values()
        if isinstance(value, Stage)
    }
    assert used == {stage.name for stage in STAGES} == versions().keys()


# What this file's first defence, with a victim that it trains, does not need.
OTHERS = {
    "second_embeddings",
    "label_flow_refit",
    "model_images",
    "model_trigger_inversion",
    "feature_separation",
    "retraining",
    "power",
}


@pytest.mark.parametrize("name", [stage.name for stage in STAGES if stage.name not in OTHERS])
def test_a_raised_version_recomputes_the_stage_and_what_stands_on_it_and_nothing_else(
    source, run, whole, monkeypatch, name
):
    assert not OTHERS & whole.stages_.keys()
    changed(monkeypatch, name, version=99)
    again = Defender(GUIDE, run, config=CONFIG).fit(source)
    everything = whole.stages_.keys()
    of_images = everything - {"embeddings", "label_flow"}
    expected = {"embeddings": everything, "images": of_images}
    assert computed(again) == expected.get(name, {name} | STAND_ON.get(name, set()))


SPEC = ModelSpec.sized(architecture="preactresnet18-4", num_classes=3, input_size=(12, 10))


def flag_labels(patch):
    """Flag and exclude one label each, whatever the linear probe says."""
    flagged, excluded = (np.arange(240) == row for row in (5, 6))
    soft = np.full((240, 3), 1 / 3, np.float32)
    flow = LabelFlow(flagged, excluded, np.zeros(240), np.arange(240), soft)
    for rule in ("label_only_poison", "refitted_label_flow"):
        patch.setattr(computing, rule, lambda *_: flow)


def fit_given(source, path):
    return Defender(GUIDE, path, config=CONFIG).fit(source, model=build(SPEC, Seed(0)), spec=SPEC)


@pytest.fixture(scope="module")
def other_size(source, whole, tmp_path_factory):
    """Return the folder of a run with flagged labels, and with a model of another input size."""
    path = tmp_path_factory.mktemp("other size") / "run"
    shutil.copytree(whole.run_dir, path)
    with pytest.MonkeyPatch.context() as patch:
        flag_labels(patch)
        fit_given(source, path)
    return path


@pytest.mark.parametrize(
    ("name", "stand_on"),
    [
        ("label_flow", {"removal", "label_flow_refit"}),
        ("label_flow_refit", set()),
        ("model_images", {"model_trigger_inversion", "feature_separation", "unlearning"}),
        ("model_trigger_inversion", set()),
        ("feature_separation", set()),
    ],
)
def test_so_do_stages_that_only_some_runs_have(source, other_size, tmp_path, monkeypatch, name, stand_on):
    shutil.copytree(other_size, tmp_path / "run")
    flag_labels(monkeypatch)
    assert computed(fit_given(source, tmp_path / "run")) == set()
    changed(monkeypatch, name, version=99)
    assert computed(fit_given(source, tmp_path / "run")) == {name} | stand_on


def test_a_changed_result_recomputes_all_that_follows_from_it(tmp_path, monkeypatch):
    # Twice as many samples as elsewhere: of fewer, it depends on a processor's rounding what is flagged.
    data, poisoned = poisoned_set(n=480, share=0.1)
    source = source_of(data)
    whole = Defender(GUIDE, tmp_path / "run", config=CONFIG).fit(source)
    before = {
        name: read_array(whole.stages_["early_model"].path / name)
        for name in ("early_nll.npy", "late_nll.npy")
    }

    def in_reverse(scan, folder, progress):
        for name, losses in before.items():
            write_array(folder / name, np.where(poisoned, losses / 10, 5 + losses.max() - losses))

    changed(monkeypatch, "early_model", version=99, compute=in_reverse)
    again = Defender(GUIDE, tmp_path / "run", config=CONFIG).fit(source)
    assert computed(again) == {
        "early_model",
        "trigger_detector",
        "removal",
        "trigger_inversion",
        "samples",
        "unlearning",
    }
    assert again.partition_.fingerprint != whole.partition_.fingerprint


def test_without_a_raised_version_a_changed_stage_is_read_back(source, run, monkeypatch):
    def never(scan, folder, progress):
        pytest.fail("the stage was computed")

    changed(monkeypatch, "early_model", compute=never)
    assert computed(Defender(GUIDE, run, config=CONFIG).fit(source)) == set()


def test_another_number_of_threads_recomputes_large_trainings_and_nothing_else(source, run, whole):
    again = Defender(GUIDE, run, config=CONFIG, threads=2).fit(source)
    assert computed(again) == {"victim", "unlearning"}
    assert read_json(run / "manifest.json")["threads"] == 2
    assert computed(Defender(GUIDE, run, config=CONFIG, threads=2).scan(source)) == set()


def test_a_gpu_computes_everything_of_its_own(source, run, whole, monkeypatch):
    # What the stages of this one are computed on is the processor: only its name differs.
    gpu = replace(CPU, name="Some GPU", dtype="bfloat16")
    monkeypatch.setattr(Device, "description", property(lambda device: f"{device.name}, {device.dtype}"))
    with computing_on(gpu):
        again = Defender(GUIDE, run, config=CONFIG).fit(source)
        assert computed(again) == whole.stages_.keys()
        assert computed(Defender(GUIDE, run, config=CONFIG).fit(source)) == set()
    assert read_json(run / "manifest.json")["device"] == "Some GPU, bfloat16"


@pytest.mark.parametrize("value", [2, 4, "3", None])
def test_a_run_folder_of_another_format_is_refused_in_one_line_and_left_alone(source, run, value):
    manifest = read_json(run / "manifest.json")
    manifest["format"] = value
    write_json(run / "manifest.json", manifest)
    before = (run / "manifest.json").read_bytes()
    for opened in (
        lambda: RunFolder.read(run),
        lambda: folder_of(run, source),
        lambda: Defender(GUIDE, run, config=CONFIG).scan(source),
    ):
        with pytest.raises(ClipguardError, match="another version of clipguard: use a new one") as error:
            opened()
        assert "\n" not in str(error.value)
        assert str(run) in str(error.value)
    assert (run / "manifest.json").read_bytes() == before
