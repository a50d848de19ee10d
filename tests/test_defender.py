"""pipeline.defender: scikit-learn's contract over the pipeline, any kind of victim."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from clipguard.clip.zero_shot import ClipGuide
from clipguard.compute import classifiers
from clipguard.compute.inference import classifier_logits
from clipguard.compute.training import cross_entropy, fit
from clipguard.data.decode import prepared
from clipguard.detection.label_flow import LabelFlow
from clipguard.errors import ClipguardError
from clipguard.models.spec import ModelSpec, Normalized, build, load, read_spec, save
from clipguard.pipeline import computing
from clipguard.pipeline.computing import FEATURES_FILE
from clipguard.pipeline.defender import Defender
from clipguard.pipeline.stages import UNLEARNING
from clipguard.runs import ShardedArray
from clipguard.seeds import Seed
from clipguard.types import Preprocessing, State
from tiny_runs import CONFIG, NAMES, poisoned_set, samples_of, source_of

GUIDE = ClipGuide("mini")
SPEC = ModelSpec.sized(architecture="preactresnet18-4", num_classes=3, input_size=(16, 16))
RETRAIN = replace(CONFIG, by="retrain")
SCAN = [
    *("embeddings", "images", "early_model", "label_flow"),
    *("trigger_detector", "removal", "trigger_inversion", "samples", "quality"),
]


def small_net(num_classes):
    """Return a user's own network, as a factory that clipguard imports."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(196, num_classes)
    )


FACTORY = f"{__name__}:small_net"


@pytest.fixture(scope="module")
def source():
    return source_of(poisoned_set()[0])


@pytest.fixture(scope="module")
def scan_folder(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scan") / "run"
    Defender(GUIDE, folder, config=CONFIG).scan(source)
    return folder


@pytest.fixture(scope="module")
def fitted(source, scan_folder, tmp_path_factory):
    """Return a defender that trained its victim itself, in the folder of a finished scan."""
    folder = tmp_path_factory.mktemp("fit") / "run"
    shutil.copytree(scan_folder, folder)
    return Defender(GUIDE, folder, config=CONFIG).fit(source)


@pytest.fixture
def scanned_folder(scan_folder, tmp_path):
    """Return a run folder of which the scan is done."""
    shutil.copytree(scan_folder, tmp_path / "scanned")
    return tmp_path / "scanned"


@pytest.fixture
def defender(tmp_path):
    return Defender(GUIDE, tmp_path / "run", config=CONFIG)


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def cached(defender):
    return [name for name, stage in defender.stages_.items() if stage.cached]


def computed(defender):
    return [name for name, stage in defender.stages_.items() if not stage.cached]


def test_the_constructor_only_stores(tmp_path):
    def progress(step, done, total):
        pytest.fail("nothing is done yet")

    made = Defender(GUIDE, tmp_path / "run", config=CONFIG, progress=progress)
    stored = {"guide": GUIDE, "run_dir": tmp_path / "run", "config": CONFIG, "progress": progress}
    stored |= {"engine": None, "embeddings": None, "second_guide": None}
    unset = {"baseline": None, "reviews": None}
    assert vars(made) == {**stored, "device": None, "threads": None, "quality": True, **unset}
    assert not (tmp_path / "run").exists()


def test_a_scan_returns_itself_with_samples_partition_and_verdict(source, defender, tmp_path):
    assert defender.scan(source) is defender
    assert len(defender.samples_["id"]) == len(source)
    assert defender.partition_ is defender.scan_.partition
    flagged = defender.samples_["status"] == "flagged"
    assert flagged.any()
    assert np.array_equal(flagged, defender.partition_.flagged)
    assert defender.verdict_.answer == "suspicious"
    assert list(defender.stages_) == computed(defender) == SCAN
    assert not hasattr(defender, "model_")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_anything_that_can_be_opened_can_be_scanned(defender, tmp_path):
    data, _ = poisoned_set(60)
    np.savez(tmp_path / "set.npz", images=data.images, labels=data.labels, class_names=np.array(NAMES))
    defender.scan(str(tmp_path / "set.npz"))
    assert len(defender.samples_["id"]) == 60


def test_a_fit_repeats_no_stage_of_the_scan_and_gives_the_same_ranking(fitted, scan_folder):
    assert list(fitted.stages_) == [*SCAN, "victim", "unlearning"]
    assert cached(fitted) == SCAN
    ranking = (scan_folder / "samples.parquet").read_bytes()
    assert (fitted.scan_.context.run.path / "samples.parquet").read_bytes() == ranking
    assert not fitted.partition_.has(State.HELD_OUT).any()


def test_a_fit_of_a_model_of_another_input_size_adds_its_images_and_triggers_only(source, scanned_folder):
    ranking = (scanned_folder / "samples.parquet").read_bytes()
    spec = replace(SPEC, preprocessing=Preprocessing(size=(12, 10)))
    done = Defender(GUIDE, scanned_folder, config=CONFIG).fit(source, model=build(spec, Seed(0)), spec=spec)
    assert cached(done) == SCAN
    assert computed(done) == ["model_images", "model_trigger_inversion", "unlearning"]
    assert (scanned_folder / "samples.parquet").read_bytes() == ranking
    # The scan stays as it was; what the model is repaired on has its size.
    assert done.scan_.data.images.shape == (240, 16, 16, 3)
    images = done.trained_on_.data.images
    assert images.shape == (240, 12, 10, 3)
    assert np.array_equal(images[7:8][0], prepared(done.scan_.data.pixels[7], Preprocessing(size=(12, 10))))
    assert np.array_equal(images[:], ShardedArray.of(scanned_folder / "stages" / "model_images")[:])


def test_a_model_of_another_input_size_is_repaired_with_triggers_of_its_size(source, tmp_path, monkeypatch):
    monkeypatch.setattr("clipguard.detection.trigger_inversion.FEWEST", 10)
    spec = replace(SPEC, preprocessing=Preprocessing(size=(12, 10)))
    done = Defender(GUIDE, tmp_path / "run", config=CONFIG).fit(source, model=build(spec, Seed(0)), spec=spec)
    assert [one.scale.shape for one in done.triggers_] == [(16, 16, 3)]
    assert [one.scale.shape for one in done.trained_on_.triggers] == [(12, 10, 3)]


def test_a_fit_gives_victim_repaired_model_and_history_and_writes_the_model(fitted):
    run = fitted.scan_.context.run.path
    assert fitted.spec_ == SPEC == read_spec(run / "model.safetensors")
    assert same(load(run / "model.safetensors", SPEC).state_dict(), fitted.model_.state_dict())
    assert not same(fitted.before_.state_dict(), fitted.model_.state_dict())
    assert fitted.model_.training is False
    assert list(fitted.history_["epoch"]) == [1, 2]


def test_fitting_again_reads_everything_back(fitted, source):
    again = Defender(GUIDE, fitted.run_dir, config=CONFIG).fit(source)
    assert all(stage.cached for stage in again.stages_.values())
    assert same(again.model_.state_dict(), fitted.model_.state_dict())
    assert np.array_equal(again.history_["loss"], fitted.history_["loss"])


class Killed(BaseException):
    """Stands for the end of a process."""


def test_a_fit_that_was_killed_goes_on_where_it_stood_and_ends_with_the_same_model(fitted, source, tmp_path):
    def kill(title, done, _total):
        if (title, done) == (UNLEARNING.title, 1):
            raise Killed

    with pytest.raises(Killed):
        Defender(GUIDE, tmp_path / "run", config=CONFIG, progress=kill).fit(source)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    resumed = Defender(GUIDE, tmp_path / "run", config=CONFIG).fit(source)
    assert computed(resumed) == ["unlearning"]
    for name in ("model.safetensors", "samples.parquet"):
        assert (tmp_path / "run" / name).read_bytes() == (fitted.run_dir / name).read_bytes()


def recorded_rows(monkeypatch):
    """Return a list that fills with the rows of each training."""
    rows_of_trainings, real = [], classifiers.fit

    def recorded(model, images, rows, *rest):
        rows_of_trainings.append(set(rows.tolist()))
        return real(model, images, rows, *rest)

    monkeypatch.setattr(classifiers, "fit", recorded)
    return rows_of_trainings


def test_a_victim_trained_here_leaves_out_a_twentieth_and_flagged_samples_stay_in(
    source, scanned_folder, monkeypatch
):
    learnt_rows = recorded_rows(monkeypatch)
    done = Defender(GUIDE, scanned_folder, config=CONFIG).fit(source)
    held_out = done.trained_on_.partition.has(State.HELD_OUT)
    assert held_out.sum() == 12
    assert learnt_rows == [set(np.flatnonzero(~held_out))]
    assert done.partition_.flagged[~held_out].any()
    assert np.array_equal(done.trained_on_.partition.state[~held_out], done.partition_.state[~held_out])


def test_retraining_drops_exactly_the_flagged_and_the_held_out(fitted, source, monkeypatch):
    learnt_rows = recorded_rows(monkeypatch)
    again = Defender(GUIDE, fitted.run_dir, config=RETRAIN).fit(source)
    flagged, held_out = again.partition_.flagged, again.trained_on_.partition.has(State.HELD_OUT)
    assert flagged.any()
    assert held_out.any()
    # The victim is there already: only the second training is left.
    assert learnt_rows == [set(np.flatnonzero(~flagged & ~held_out))]
    assert computed(again) == ["retraining"]
    assert "unlearning" not in again.stages_


def test_retraining_drops_excluded_samples_too(fitted, source, monkeypatch):
    learnt_rows = recorded_rows(monkeypatch)
    real = Defender._scan

    def with_excluded(self, *arguments):
        real(self, *arguments)
        excluded = self.partition_.clean & (np.arange(240) % 9 == 0)
        moved = self.partition_.moved(excluded, State.EXCLUDED)
        self.scan_ = replace(self.scan_, partition=moved)
        return self

    monkeypatch.setattr(Defender, "_scan", with_excluded)
    again = Defender(GUIDE, fitted.run_dir, config=RETRAIN).fit(source)
    kept = again.trained_on_.partition.has(State.CLEAN, State.UNCERTAIN)
    assert again.partition_.has(State.EXCLUDED).sum() > 5
    assert learnt_rows == [set(np.flatnonzero(kept))]


@pytest.mark.parametrize("config", [CONFIG, RETRAIN], ids=["unlearn", "retrain"])
def test_a_module_is_left_exactly_as_it_was(source, scanned_folder, config):
    with Seed(0).torch_global():
        module = small_net(3).train()
    before = state_of(module)
    spec = replace(SPEC, architecture=FACTORY)
    done = Defender(GUIDE, scanned_folder, config=config).fit(source, model=module, spec=spec)
    assert same(before, module.state_dict())
    assert module.training
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not same(done.model_.network.state_dict(), before)
    with torch.no_grad():
        module[-1].bias += 1
    # What was measured before stays what it was, whatever the user does with the module afterwards.
    assert same(before, done.before_.network.state_dict())


def test_a_module_that_no_name_can_build_is_repaired_all_the_same(source, scanned_folder):
    module = nn.Sequential(nn.Flatten(), nn.Linear(768, 3))
    spec = replace(SPEC, architecture="mine alone")
    images, labels = poisoned_set()[0].images, poisoned_set()[0].labels
    recipe = replace(CONFIG.victim, epochs=5)
    fit(Normalized(module, spec), images, np.arange(240), cross_entropy(labels), recipe, Seed(0))
    defender = Defender(GUIDE, scanned_folder, config=CONFIG).fit(source, model=module, spec=spec)
    assert classifier_logits(defender.model_, defender.scan_.data.images[:5]).shape == (5, 3)


def test_a_normalised_model_and_its_file_are_repaired_alike(source, scanned_folder, tmp_path):
    model = build(SPEC, Seed(4))
    save(model, SPEC, tmp_path / "model.safetensors")
    one = Defender(GUIDE, scanned_folder, config=CONFIG).fit(source, model=model, spec=SPEC)
    two = Defender(GUIDE, scanned_folder, config=CONFIG).fit(source, model=tmp_path / "model.safetensors")
    assert computed(one) == ["unlearning"]
    assert two.stages_["unlearning"].cached
    assert same(one.model_.state_dict(), two.model_.state_dict())


def test_a_file_of_an_importable_factory_needs_its_spec(source, scanned_folder, tmp_path):
    spec = replace(SPEC, architecture=FACTORY)
    save(build(spec, Seed(0)), spec, tmp_path / "mine.safetensors")
    defender = Defender(GUIDE, scanned_folder, config=CONFIG)
    with pytest.raises(ClipguardError, match="wants the code"):
        defender.fit(source, model=tmp_path / "mine.safetensors")
    defender.fit(source, model=tmp_path / "mine.safetensors", spec=spec)
    assert isinstance(defender.model_.network[0], nn.Conv2d)
    assert defender.spec_ == spec


def test_a_factory_can_be_the_victim_that_is_trained_here(source, scanned_folder):
    done = Defender(GUIDE, scanned_folder, config=replace(CONFIG, architecture=FACTORY)).fit(source)
    assert isinstance(done.before_.network[0], nn.Conv2d)


def test_a_timm_model_is_trained_and_repaired(source, scanned_folder):
    config = replace(CONFIG, architecture="test_resnet")
    done = Defender(GUIDE, scanned_folder, config=config).fit(source)
    file = scanned_folder / "model.safetensors"
    again, images = load(file, read_spec(file)), done.scan_.data.images[:9]
    assert type(done.before_.network).__module__.startswith("timm.")
    assert np.array_equal(classifier_logits(again, images), classifier_logits(done.model_, images))
    assert not np.array_equal(classifier_logits(done.before_, images), classifier_logits(again, images))


def test_a_module_without_a_spec_is_refused(source, defender, tmp_path):
    with pytest.raises(ClipguardError, match="needs a ModelSpec"):
        defender.fit(source, model=small_net(3))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("as_file", [True, False])
def test_a_model_with_another_number_of_classes_is_refused_before_anything_is_done(
    source, defender, tmp_path, as_file
):
    spec = replace(SPEC, num_classes=5)
    model = build(spec, Seed(0))
    save(model, spec, tmp_path / "five.safetensors")
    victim = {"model": tmp_path / "five.safetensors"} if as_file else {"model": model, "spec": spec}
    with pytest.raises(ClipguardError, match="the model has 5 classes but the data set names 3"):
        defender.fit(source, **victim)
    assert not (tmp_path / "run").exists()


def test_a_class_that_the_flags_would_empty_is_an_error_in_one_line(scanned_folder, source, monkeypatch):
    monkeypatch.setattr(
        "clipguard.pipeline.scanning.assigned", lambda part, labels, _: part.moved(labels == 1, State.TRIGGER)
    )
    config = replace(RETRAIN, drop_anyway=True)
    with pytest.raises(ClipguardError, match="has no sample left to train on") as error:
        Defender(GUIDE, scanned_folder, config=config).fit(source)
    assert "\n" not in str(error.value)


def test_the_small_nets_see_the_size_that_is_set_whatever_the_model_takes(source, tmp_path):
    spec, config = replace(SPEC, preprocessing=Preprocessing(size=(20, 24))), replace(CONFIG, size=(12, 40))
    done = Defender(GUIDE, tmp_path / "run", config=config).fit(source, model=build(spec, Seed(0)), spec=spec)
    assert done.trained_on_.data.images.shape[1:3] == (20, 24)
    small = done.scan_.data.images
    assert small.shape == (len(source), 12, 40, 3)
    assert {"model_images", "model_trigger_inversion"} <= done.stages_.keys()
    images = poisoned_set()[0].images
    assert np.array_equal(small[7:8][0], prepared(images[7], Preprocessing(size=(12, 40))))
    model_images = done.trained_on_.data.images
    assert np.array_equal(model_images[7:8][0], prepared(images[7], Preprocessing(size=(20, 24))))


def test_notes_of_stages_become_warnings_also_where_they_are_read_back(tmp_path):
    data = poisoned_set(60)[0]
    first, again = (Defender(GUIDE, tmp_path / "run", config=CONFIG).scan(source_of(data)) for _ in range(2))
    assert "trigger_detector" in cached(again)
    (note,) = [line for line in first.warnings_ if "could not balance contents" in line]
    assert "50 of each are needed" in note
    assert again.warnings_ == first.warnings_


def test_a_stage_that_did_as_it_should_warns_of_nothing(defender, monkeypatch):
    monkeypatch.setattr("clipguard.detection.trigger_detector.FEWEST", 1)
    defender.scan(source_of(poisoned_set(60)[0]))
    assert not [line for line in defender.warnings_ if "trigger detector" in line]


def test_classes_without_images_and_with_too_few_clean_ones_are_named(defender):
    data, _ = poisoned_set(60)
    defender.scan(source_of(replace(data, class_names=(*NAMES, "newt"))))
    assert any("1 classes have no image: newt" in line for line in defender.warnings_)
    (line,) = [line for line in defender.warnings_ if "too few clean samples" in line]
    clean = np.bincount(data.labels[defender.partition_.clean], minlength=4)
    for name, count in zip((*NAMES, "newt"), clean, strict=True):
        assert (name in line) == (count < 10)


def test_the_published_table_follows_what_is_flagged_in_this_run(fitted, source, tmp_path, monkeypatch):
    # Label flow is computed outside of the stages that hold its log-probabilities: as another rule would.
    shutil.copytree(fitted.run_dir, tmp_path / "run")
    flagged, excluded = (np.arange(len(source)) == row for row in (5, 6))
    soft = np.full((len(source), 3), 1 / 3, np.float32)
    flow = LabelFlow(flagged, excluded, np.zeros(len(source)), np.arange(len(source)), soft)
    for rule in ("label_only_poison", "refitted_label_flow"):
        monkeypatch.setattr(computing, rule, lambda *_: flow)
    again = Defender(GUIDE, tmp_path / "run", config=CONFIG).fit(source)
    rows = samples_of(tmp_path / "run")
    assert {"trigger_detector", "label_flow"} <= set(cached(again))
    assert {"label_flow_refit", "samples", "feature_separation", "unlearning"} <= set(computed(again))
    assert np.array_equal(rows["reason"] == "label", flagged)
    assert np.array_equal(rows["reason"] == "excluded", excluded & (rows["reason"] != "trigger"))
    assert np.array_equal(rows["status"] == "flagged", again.partition_.flagged)
    assert (tmp_path / "run" / FEATURES_FILE).exists()
    # A later repair without flagged labels takes the table of the earlier one away.
    monkeypatch.undo()
    Defender(GUIDE, tmp_path / "run", config=CONFIG).fit(source)
    assert not (tmp_path / "run" / FEATURES_FILE).exists()
