"""Attacks that cannot be done, and folders of attacks that cannot be used: exit code 2 and one line."""

import pytest

from clipguard.data import ImageSource
from clipguard.data.decode import read_images
from clipguard.data.writer import write_parquet
from clipguard.types import Preprocessing, image_set
from tiny_data import image_folder

MINI = ("--guide", "mini")


@pytest.fixture
def data(tmp_path):
    return image_folder(tmp_path / "data", n=20)


def attacked(clipguard, data, out, *more):
    ran = clipguard("attack", data, "-o", out, "--attack", "badnets", *more)
    assert ran.code == 0, ran.err
    return out


def test_an_attack_folder_without_test_images(clipguard, refused, data, tmp_path):
    out = attacked(clipguard, data, tmp_path / "out")
    train = out / "train.parquet"
    refused(
        "defend", train, "-o", tmp_path / "run", *MINI, "--test", out, expected=["no test.parquet", "--test"]
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"target_mapping": 0}',
        '{"target_mapping": [0, true]}',
        '{"target_mapping": [0, 2]}',
        '{"target_mapping": [0]}',
    ],
)
def test_an_attack_folder_with_a_damaged_description(clipguard, refused, data, tmp_path, text):
    out = attacked(clipguard, data, tmp_path / "out", "--test", data)
    (out / "attack.json").write_text(text)
    expected = ["attack.json"]
    refused("defend", out / "train.parquet", "-o", tmp_path / "run", *MINI, "--test", out, expected=expected)


def test_triggered_images_that_are_not_the_test_images(clipguard, refused, data, tmp_path):
    out = attacked(clipguard, data, tmp_path / "out", "--test", data)
    test = read_images(ImageSource.open(out / "test.parquet"), Preprocessing(size=(16, 16)))[0]
    mixed = image_set(test.images, test.labels[::-1].copy(), test.class_names, test.ids)
    write_parquet(mixed, out / "test-triggered.parquet")
    expected = ["differ in labels"]
    refused("defend", out / "train.parquet", "-o", tmp_path / "run", *MINI, "--test", out, expected=expected)


def test_an_attack_does_not_write_over_anything(clipguard, refused, data, tmp_path):
    out = attacked(clipguard, data, tmp_path / "out")
    expected = ["not an empty folder"]
    refused("attack", data, "-o", out, "--attack", "badnets", expected=expected)
    refused("attack", data, "-o", out / "attack.json", "--attack", "badnets", expected=expected)


def test_an_attack_may_fill_an_empty_folder_and_what_a_killed_one_left_goes_away(clipguard, data, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part" / "half.parquet").write_bytes(b"half")
    out = attacked(clipguard, data, tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == ["attack.json", "train.parquet", "truth.parquet"]
    assert not (tmp_path / ".out.part").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--attack", "trojan"], "trojan"),
        (["--attack", "badnets", "--rate", "1.5"], "outside (0, 1)"),
        (["--attack", "badnets", "--rate", "nan"], "outside (0, 1)"),
        (["--attack", "badnets", "--target", "2"], "labels 0 to 1"),
        (["--attack", "badnets", "--target", "-1"], "labels 0 to 1"),
        (["--attack", "badnets", "--test-rows", "0:2"], "--test"),
    ],
)
def test_an_attack_that_cannot_be_done(refused, data, tmp_path, arguments, expected):
    refused("attack", data, "-o", tmp_path / "out", *arguments, expected=[expected])


def test_an_attack_with_too_few_candidates(refused, data, tmp_path):
    attack = ("--attack", "sig", "--rate", "0.9")
    refused("attack", data, "-o", tmp_path / "out", *attack, expected=["lower the rate"])


def test_an_attack_that_would_poison_nothing(refused, data, tmp_path):
    attack = ("--attack", "badnets", "--rate", "0.01")
    refused("attack", data, "-o", tmp_path / "out", *attack, expected=["0.01 of 20 images is none"])


def test_an_attack_on_test_images_of_other_classes(refused, data, tmp_path):
    other = image_folder(tmp_path / "other", n=8, names=("cat", "cow"))
    attack = ("--attack", "badnets", "--test", other)
    refused("attack", data, "-o", tmp_path / "out", *attack, expected=["other classes"])
