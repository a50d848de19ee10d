"""The command `attack`: what it writes and prints, an attack's own settings, fitted attacks kept."""

import json

import numpy as np
import pytest

from clipguard.data import ImageSource
from clipguard.data.decode import read_images
from clipguard.lab.attacks import ATTACKS, surrogate
from clipguard.lab.ground_truth import read_truth
from clipguard.types import Preprocessing
from tiny_data import CommandLine, image_folder


@pytest.fixture
def clipguard(capsys):
    return CommandLine(capsys)


def test_an_attacks_own_settings_can_be_given(clipguard, tmp_path):
    data = image_folder(tmp_path / "data", n=20)
    written = []
    for alpha in ("0.2", "1"):
        out = tmp_path / alpha
        more = ("--option", f"alpha={alpha}", "--option", "pattern_seed=3", "--mapping", "all-to-all")
        ran = clipguard("attack", data, "-o", out, "--attack", "blended", "--rate", 0.5, *more, "--json")
        assert ran.code == 0, ran.err
        assert ran.json["options"] == {"alpha": float(alpha), "pattern_seed": 3, "mapping": "all-to-all"}
        written.append(read_images(ImageSource.open(out / "train.parquet"), Preprocessing(size=(16, 16)))[0])
    truth = read_truth(out / "truth.parquet").poisoned
    weak, strong = (len(np.unique(data.images[truth], axis=0)) for data in written)
    assert (weak, strong) == (10, 1)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--attack", "blended", "--option", "alpha"], "alpha=0.1"),
        (["--attack", "blended", "--option", "alpha=0.1", "--option", "alpha=0.2"], "once"),
        (["--attack", "blended", "--option", "alpah=0.1"], "no option 'alpah'"),
        (["--attack", "blended", "--option", "alpha=much"], "option alpha of attack blended is 'much'"),
        (["--attack", "blended", "--option", "alpha=nan"], "finite number"),
        (["--attack", "blended", "--option", "rate=0.2"], "rate is no setting of one attack's own"),
        (["--attack", "sig", "--rate", "0.1", "--size", "12"], "the trigger changes no pixel"),
        (["--attack", "sig", "--mapping", "all-to-all"], "no option 'mapping'"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line_and_leaves_nothing(clipguard, tmp_path, arguments, expected):
    data = image_folder(tmp_path / "data", n=40)
    ran = clipguard("attack", data, "-o", tmp_path / "out", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert expected in ran.err
    assert "Traceback" not in ran.err
    assert not (tmp_path / "out").exists()


def test_an_attack_is_fitted_once(clipguard, tmp_path, monkeypatch):
    data, cache = image_folder(tmp_path / "data", n=40), tmp_path / "cache"
    for number, rate in enumerate((0.1, 0.2)):
        more = ("--rate", rate, "--cache", cache)
        ran = clipguard("attack", data, "-o", tmp_path / f"{number}", "--attack", "narcissus", *more)
        assert ran.code == 0, ran.err
        assert len(list((cache / "attacks").iterdir())) == 1
        monkeypatch.setattr(surrogate, "surrogate_of", lambda *args: pytest.fail("trained again"))


@pytest.mark.parametrize("attack", list(ATTACKS))
def test_attack_prints_what_it_wrote(clipguard, tmp_path, attack):
    data, test = image_folder(tmp_path / "data", n=40), image_folder(tmp_path / "test", n=10, seed=1)
    out = tmp_path / "made" / "out"
    ran = clipguard("attack", data, "-o", out, "--attack", attack, "--rate", 0.1, "--test", test, "--json")
    has_trigger = attack not in ("none", "flips", "flips-to-one")
    counts = {"train": 40, "poisoned": 0 if attack == "none" else 4, "test": 10, "unreadable": 0}
    counts["cover"] = {"wanet": 8, "bpp": 4, "input-aware": 4, "adap-blend": 4, "adap-patch": 8}.get(
        attack, 0
    )
    assert ran.code == 0
    assert ran.json["counts"] == {**counts, "triggered": 10 if has_trigger else 0}
    files = {"train.parquet", "test.parquet", "truth.parquet", "attack.json"}
    assert {path.name for path in out.iterdir()} == files | (
        {"test-triggered.parquet"} if has_trigger else set()
    )
    about = json.loads((out / "attack.json").read_text())
    assert about["target"] == (None if attack in ("none", "flips") else 0)
    assert about["target_mapping"] == (None if attack in ("none", "flips") else [0, 0])
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["out"]
