"""pipeline.defender: scikit-learn's contract over the pipeline, any kind of victim, honest figures."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from clipguard.clip.zero_shot import ClipGuide
from clipguard.compute.inference import classifier_logits
from clipguard.data.decode import thumbnail
from clipguard.detection.label_flow import LabelFlow
from clipguard.errors import ClipguardError
from clipguard.models.spec import ModelSpec, build, load, read_spec, save
from clipguard.pipeline import repairing, scanning
from clipguard.pipeline.defender import Defender, verdict, write_summary
from clipguard.runs import read_table
from clipguard.seeds import Seed
from tiny_runs import NAMES, PLAN, poisoned_set, source_of

GUIDE = ClipGuide("mini")
SPEC = ModelSpec(architecture="preactresnet18-4", num_classes=3, input_size=(16, 16))
RETRAIN = replace(PLAN, by="retrain")


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
def fitted(source, tmp_path_factory):
    """Return a defender that trained its victim itself."""
    return Defender(GUIDE, tmp_path_factory.mktemp("fit") / "run", plan=PLAN).fit(source)


@pytest.fixture(scope="module")
def scan_folder(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scan") / "run"
    Defender(GUIDE, folder, plan=PLAN).scan(source)
    return folder


@pytest.fixture
def ready(scan_folder, tmp_path):
    """Return a run folder of which the scan is done."""
    shutil.copytree(scan_folder, tmp_path / "ready")
    return tmp_path / "ready"


@pytest.fixture
def defender(tmp_path):
    return Defender(GUIDE, tmp_path / "run", plan=PLAN)


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_constructor_only_stores(tmp_path):
    def report(stage, done, total):
        pytest.fail("nothing is done yet")

    made = Defender(GUIDE, tmp_path / "run", plan=PLAN, report=report)
    assert vars(made) == {"guide": GUIDE, "run_dir": tmp_path / "run", "plan": PLAN, "report": report}
    assert not (tmp_path / "run").exists()


def test_a_scan_returns_itself_with_the_samples_the_split_and_the_verdict(source, defender, tmp_path):
    assert defender.scan(source) is defender
    assert len(defender.samples_["id"]) == len(source)
    assert np.array_equal(defender.samples_["is_triggered"], defender.split_.triggered)
    assert defender.verdict_["verdict"] == "undecided"
    assert not hasattr(defender, "model_")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_anything_that_can_be_opened_can_be_scanned(defender, tmp_path):
    data, _ = poisoned_set(60)
    np.savez(tmp_path / "set.npz", images=data.images, labels=data.labels, class_names=np.array(NAMES))
    defender.scan(str(tmp_path / "set.npz"))
    assert len(defender.samples_["id"]) == 60


def test_a_fit_gives_victim_cured_model_and_history_and_writes_the_model(fitted):
    run = fitted.found_.run.path
    assert fitted.spec_ == SPEC == read_spec(run / "model.safetensors")
    assert same(load(run / "model.safetensors", SPEC).state_dict(), fitted.model_.state_dict())
    assert not same(fitted.before_.state_dict(), fitted.model_.state_dict())
    assert fitted.model_.training is False
    assert list(fitted.history_["epoch"]) == [1, 2]
    scan = ["read", "suspect", "detect", "labels", "samples", "evidence"]
    assert list(fitted.stages_) == [*scan, "victim", "cure"]


def test_fitting_again_reads_everything_back(fitted, source):
    again = Defender(GUIDE, fitted.run_dir, plan=PLAN).fit(source)
    assert all(stage.cached for stage in again.stages_.values())
    assert same(again.model_.state_dict(), fitted.model_.state_dict())
    assert np.array_equal(again.history_["loss"], fitted.history_["loss"])


def test_a_scan_is_the_first_half_of_curing_a_given_model(source, defender):
    defender.scan(source)
    assert not any(stage.cached for stage in defender.stages_.values())
    defender.fit(source, build(SPEC, Seed(0)), SPEC)
    assert {name for name, stage in defender.stages_.items() if stage.cached} == {
        "read",
        "suspect",
        "detect",
        "labels",
        "samples",
        "evidence",
    }


class Killed(BaseException):
    """Stands for the end of a process."""


def test_a_fit_that_was_killed_goes_on_where_it_stood_and_ends_with_the_same_model(fitted, source, tmp_path):
    def kill(stage, done, _total):
        if (stage, done) == ("cure", 1):
            raise Killed

    with pytest.raises(Killed):
        Defender(GUIDE, tmp_path / "run", plan=PLAN, report=kill).fit(source)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    resumed = Defender(GUIDE, tmp_path / "run", plan=PLAN).fit(source)
    assert [name for name, stage in resumed.stages_.items() if not stage.cached] == ["cure"]
    for name in ("model.safetensors", "samples.parquet"):
        assert (tmp_path / "run" / name).read_bytes() == (fitted.found_.run.path / name).read_bytes()


def test_retraining_drops_exactly_the_flagged_and_the_reserved(fitted, source, monkeypatch):
    learnt, real = [], repairing.fit

    def recorded(model, images, rows, *rest):
        learnt.append(set(rows.tolist()))
        return real(model, images, rows, *rest)

    monkeypatch.setattr(repairing, "fit", recorded)
    again = Defender(GUIDE, fitted.run_dir, plan=RETRAIN).fit(source)
    part, reserved = again.split_, again.found_.reserved
    assert part.triggered.any()
    assert reserved.any()
    # The victim is there already: only the second training is left.
    assert learnt == [set(np.flatnonzero(~part.triggered & ~reserved))]
    assert "retrain" in again.stages_
    assert "cure" not in again.stages_


@pytest.mark.parametrize("plan", [PLAN, RETRAIN], ids=["cure", "retrain"])
def test_a_module_is_left_exactly_as_it_was(source, ready, plan):
    with Seed(0).torch_global():
        module = small_net(3).train()
    before = state_of(module)
    spec = replace(SPEC, architecture=FACTORY)
    done = Defender(GUIDE, ready, plan=plan).fit(source, module, spec)
    assert same(before, module.state_dict())
    assert module.training
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not same(done.model_.network.state_dict(), before)
    with torch.no_grad():
        module[-1].bias += 1
    # What was measured before stays what it was, whatever the user does with the module afterwards.
    assert same(before, done.before_.network.state_dict())


def test_a_module_that_no_name_can_build_is_cured_all_the_same(source, ready):
    module = nn.Sequential(nn.Flatten(), nn.Linear(768, 3))
    spec = replace(SPEC, architecture="mine alone")
    defender = Defender(GUIDE, ready, plan=PLAN).fit(source, module, spec)
    assert classifier_logits(defender.model_, defender.found_.data.images[:5]).shape == (5, 3)


def test_a_normalised_model_and_its_file_are_cured_alike(source, ready, tmp_path):
    model = build(SPEC, Seed(4))
    save(model, SPEC, tmp_path / "model.safetensors")
    one = Defender(GUIDE, ready, plan=PLAN).fit(source, model, SPEC)
    two = Defender(GUIDE, ready, plan=PLAN).fit(source, tmp_path / "model.safetensors")
    assert two.stages_["cure"].cached
    assert same(one.model_.state_dict(), two.model_.state_dict())


def test_a_file_of_an_importable_factory_needs_its_spec(source, ready, tmp_path):
    spec = replace(SPEC, architecture=FACTORY)
    save(build(spec, Seed(0)), spec, tmp_path / "mine.safetensors")
    defender = Defender(GUIDE, ready, plan=PLAN)
    with pytest.raises(ClipguardError, match="wants the code"):
        defender.fit(source, tmp_path / "mine.safetensors")
    defender.fit(source, tmp_path / "mine.safetensors", spec)
    assert isinstance(defender.model_.network[0], nn.Conv2d)
    assert defender.spec_ == spec


def test_a_factory_can_be_the_victim_that_is_trained_here(source, ready):
    done = Defender(GUIDE, ready, plan=replace(PLAN, architecture=FACTORY)).fit(source)
    assert isinstance(done.before_.network[0], nn.Conv2d)


def test_a_timm_model_is_trained_and_cured(source, ready, tmp_path):
    plan = replace(PLAN, architecture="test_resnet")
    done = Defender(GUIDE, ready, plan=plan).fit(source)
    again = load(ready / "model.safetensors", read_spec(ready / "model.safetensors"))
    images = done.found_.data.images[:9]
    assert type(done.before_.network).__module__.startswith("timm.")
    assert np.array_equal(classifier_logits(again, images), classifier_logits(done.model_, images))
    assert not np.array_equal(classifier_logits(done.before_, images), classifier_logits(again, images))


def test_a_module_without_a_spec_is_refused(source, defender, tmp_path):
    with pytest.raises(ClipguardError, match="needs a ModelSpec"):
        defender.fit(source, small_net(3))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("as_file", [True, False])
def test_a_model_with_another_number_of_classes_is_refused_before_anything_is_done(
    source, defender, tmp_path, as_file
):
    spec = replace(SPEC, num_classes=5)
    model = build(spec, Seed(0))
    save(model, spec, tmp_path / "five.safetensors")
    victim = (tmp_path / "five.safetensors",) if as_file else (model, spec)
    with pytest.raises(ClipguardError, match="the model has 5 classes but the data set names 3"):
        defender.fit(source, *victim)
    assert not (tmp_path / "run").exists()


def test_a_class_that_the_flags_would_empty_is_an_error_in_one_line(fitted, source):
    # A threshold that every sample exceeds.
    plan = replace(RETRAIN, detector=replace(PLAN.detector, clean=0.0, triggered=0.0))
    with pytest.raises(ClipguardError, match="has no sample left to train on") as error:
        Defender(GUIDE, fitted.run_dir, plan=plan).fit(source)
    assert "\n" not in str(error.value)


def test_a_given_model_is_cured_at_its_own_input_size(source, tmp_path):
    spec = replace(SPEC, input_size=(12, 10))
    done = Defender(GUIDE, tmp_path / "run", plan=replace(PLAN, size=None)).fit(
        source, build(spec, Seed(0)), spec
    )
    assert done.found_.data.images.shape[1:3] == (12, 10)


def test_the_small_nets_may_look_at_less_than_a_given_model(source, tmp_path):
    spec = replace(SPEC, input_size=(20, 24))
    done = Defender(GUIDE, tmp_path / "run", plan=replace(PLAN, size=(12, 40))).fit(
        source, build(spec, Seed(0)), spec
    )
    assert done.found_.data.images.shape[1:3] == (20, 24)
    # Never more than the model: there, the images do not exist at that size.
    assert done.found_.view == (12, 24)
    small = np.load(tmp_path / "run" / "stages" / "view" / "images.npy")
    assert small.shape == (len(source), 12, 24, 3)
    assert np.array_equal(small[7], thumbnail(done.found_.data.images[7], (12, 24)))


def accuracy(model, data, rows):
    return float((classifier_logits(model, data.images[rows]).argmax(1) == data.labels[rows]).mean())


def test_a_victim_trained_here_is_measured_on_what_it_has_not_seen(fitted):
    found = fitted.found_
    rows = np.flatnonzero(found.split.clean & found.reserved)
    assert 0 < len(rows) <= 12
    for figures, model in zip(fitted.own_figures(), (fitted.before_, fitted.model_), strict=True):
        assert figures["measured_on"] == "reserved samples"
        assert figures["n"] == len(rows)
        assert figures["accuracy"] == pytest.approx(accuracy(model, found.data, rows))


def test_a_given_model_has_seen_everything_and_its_figures_say_so(source, ready):
    defender = Defender(GUIDE, ready, plan=PLAN).fit(source, build(SPEC, Seed(0)), SPEC)
    found = defender.found_
    assert not found.reserved.any()
    rows = np.flatnonzero(found.split.clean)
    for figures, model in zip(defender.own_figures(), (defender.before_, defender.model_), strict=True):
        assert figures["measured_on"] == "seen in training"
        assert figures["n"] == len(rows)
        assert figures["accuracy"] == pytest.approx(accuracy(model, found.data, rows))


def test_without_a_clean_sample_no_figure_is_given(fitted, source):
    again = Defender(GUIDE, fitted.run_dir, plan=PLAN).fit(source)
    nothing = np.zeros(len(source), bool)
    again.found_ = replace(again.found_, split=replace(again.found_.split, clean=nothing))
    assert again.own_figures() == ({"measured_on": "nothing: no clean sample"},) * 2


def flagged(found, count):
    triggered = np.arange(len(found.data)) < count
    return replace(found, split=replace(found.split, triggered=triggered))


def test_the_verdict_is_undecided_and_says_how_many_share_a_pattern(fitted):
    some, none = (verdict(flagged(fitted.found_, count)) for count in (24, 0))
    assert some["verdict"] == none["verdict"] == "undecided"
    assert some["reasons"][0] == "24 of 240 samples (10.0%) share a pattern that the others lack"
    assert none["reasons"][0].startswith("nothing above chance")


def test_a_guide_that_reads_nothing_is_named_in_the_verdict(fitted):
    found = fitted.found_
    right = np.eye(3, dtype=np.float32)[found.data.labels]
    wrong = np.roll(right, 1, axis=1)
    told = {
        name: " ".join(verdict(replace(found, guide=replace(found.guide, logits=logits)))["reasons"])
        for name, logits in (("right", right), ("wrong", wrong))
    }
    assert "near chance (33.3%)" in told["wrong"]
    assert "the guide agrees with only 0.0%" in told["wrong"]
    assert "the guide agrees" not in told["right"]


def test_classes_without_images_and_with_too_few_clean_ones_are_named(defender):
    data, _ = poisoned_set(60)
    defender.scan(source_of(replace(data, class_names=(*NAMES, "newt"))))
    assert any("1 classes have no image: newt" in line for line in defender.warnings_)
    (line,) = [line for line in defender.warnings_ if "too few clean samples" in line]
    clean = np.bincount(data.labels[defender.split_.clean], minlength=4)
    for name, count in zip((*NAMES, "newt"), clean, strict=True):
        assert (name in line) == (count < PLAN.rule.fewest)


def test_the_summary_adds_up_and_is_what_was_written(fitted):
    value = write_summary(fitted, "defend", {"more": 1})
    assert value == json.loads((fitted.found_.run.path / "summary.json").read_text())
    part = value["split"]
    assert part["clean"] + part["triggered"] + part["unused"] == value["data"]["n"] == 240
    assert value["seconds"].keys() == fitted.stages_.keys()
    assert value["more"] == 1
    table = read_table(fitted.found_.run.path / "samples.parquet")
    assert part["triggered"] == table["is_triggered"].sum()


def test_planted_labels_alone_are_above_chance_and_named(fitted):
    found = flagged(fitted.found_, 30)
    some = verdict(replace(found, mislabelled=np.arange(len(found.data)) < 30))
    assert some["reasons"][0].startswith("0 of 240 samples")
    assert some["reasons"][1].startswith("30 labels without such a pattern look planted")
    assert not any("nothing above chance" in reason for reason in some["reasons"])


def test_the_published_table_says_what_this_run_judged_even_where_settings_stayed_the_same(
    fitted, source, tmp_path, monkeypatch
):
    # As another release of the rule would judge.
    shutil.copytree(fitted.run_dir, tmp_path / "run")
    marked, other = (np.arange(len(source)) == row for row in (5, 6))
    odds = np.zeros((len(source), len(fitted.found_.data.class_names)))
    for rule in ("label_only_poison", "refitted_label_flow"):
        monkeypatch.setattr(scanning, rule, lambda *_: LabelFlow(marked, other, odds))
    again = Defender(GUIDE, tmp_path / "run", plan=PLAN).fit(source)
    rows = read_table(tmp_path / "run" / "samples.parquet")
    assert again.stages_["detect"].cached
    assert "reprobe" in again.stages_
    assert np.array_equal(rows["is_mislabelled"], marked)
    assert np.array_equal(rows["is_doubted"], other & ~again.split_.triggered)
    assert np.array_equal(rows["is_triggered"], again.split_.triggered)
    assert not again.stages_["cure"].cached
