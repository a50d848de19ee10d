"""What a check of a guide and a cleaning cover: classes without images, samples, unreadable images."""

import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from clipguard.cli.guide import _without_untrusted
from clipguard.clip.cleaning import Cleaning, FineTuning, Inversion, cleaned, fine_tuning, methods
from clipguard.data import ImageSource
from clipguard.data.listing import Unreadable
from clipguard.data.provenance import UNREADABLE
from clipguard.errors import ClipguardError
from clipguard.pipeline.guide_backdoor import check_guide, clean_guide, drawn_images
from clipguard.runs import read_json, write_json
from clipguard.runs.files import check_writable
from clipguard.seeds import Seed
from test_guide_backdoor import SETTINGS, silent, with_backdoor
from tiny_data import image_folder, jpeg_header, tree
from tiny_guide import NAMES, TEMPLATES, coloured_file, coloured_images, tiny_guide

SEED = Seed(0).child("test_guide_check_coverage")
CHECK = ("--images", 60, "--steps", 1)
PIPELINE = "clipguard.pipeline.guide_backdoor"


def ignored(done, total):
    """Take progress of steps and show none."""


@pytest.fixture
def guide(tmp_path):
    return tiny_guide(tmp_path / "guide")


@pytest.fixture
def data(tmp_path):
    return coloured_file(tmp_path)


@pytest.fixture
def answered(monkeypatch):
    """Return what makes each check give an answer, with some classes that stand out."""

    def answer(*, stands_out=False, reasons=()):
        monkeypatch.setattr(f"{PIPELINE}._reasons", lambda *values: reasons)
        monkeypatch.setattr(f"{PIPELINE}.outliers", lambda reached: np.full(len(reached), stands_out))

    return answer


def test_a_class_without_an_image_is_tried_and_stands_out(guide):
    data = coloured_images(144)
    bad, _ = with_backdoor(guide, data, 2)
    others = data.labels != 2
    source = ImageSource.open((data.pixels[others], data.labels[others]), classes=NAMES)
    check = check_guide(bad, None, source, replace(SETTINGS, most_classes=None), SEED, silent)
    assert (check.tested.tolist(), check.complete, check.competence.n[2]) == ([0, 1, 2, 3, 4, 5], True, 0)
    assert (check.answer, np.flatnonzero(check.stands_out).tolist()) == ("a class stands out", [2])


@pytest.mark.parametrize(("most", "code", "count"), [(4, 3, 4), ("all", 0, 6)])
def test_the_answer_says_how_many_classes_were_tried_and_some_are_no_pass(
    clipguard, answered, data, guide, most, code, count
):
    answered()
    command = ("guide", "check", guide.model, data, *CHECK, "--most-classes", most)
    quiet = clipguard(*command, "--quiet")
    line = f"answer: nothing stands out in {count} of 6 classes"
    assert (quiet.code, quiet.out) == (code, line + "\n")
    assert clipguard(*command).out.splitlines()[-1] == line
    value = clipguard(*command, "--json").json
    assert value["answer"] == "nothing stands out"
    assert value["coverage"] == {"tested": count, "classes": 6, "complete": count == 6}


def test_a_class_that_stands_out_is_named_unless_the_answer_is_a_refusal(clipguard, answered, data, guide):
    command = ("guide", "check", guide.model, data, *CHECK, "--quiet")
    answered(stands_out=True)
    ran = clipguard(*command, "--most-classes", 5)
    assert (ran.code, ran.out.split("; ")[0]) == (1, "answer: a class stands out among 5 of 6 classes")
    assert len(ran.out.split("; ")) == 6
    answered(stands_out=True, reasons=("too few images",))
    ran = clipguard(*command)
    assert (ran.code, ran.out) == (3, "answer: not assessable; too few images\n")


def test_the_table_says_which_classes_the_guide_cannot_read_and_how_many_images(
    clipguard, answered, guide, tmp_path
):
    answered()
    folder = image_folder(tmp_path / "images", n=40)
    (folder / "cat" / "torn.jpg").write_bytes(jpeg_header())
    command = ("guide", "check", guide.model, folder, *CHECK)
    ran = clipguard(*command)
    rows = {cells[0]: cells for cells in map(str.split, ran.out.splitlines()) if cells}
    assert rows["Class"][3] == "Read"
    assert {rows[name][3] for name in ("cat", "dog")} <= {"yes", "no"}
    assert "40 images read, 1 more could not be read; patterns of" in ran.out
    assert clipguard(*command, "--json").json["unreadable"] == 1


def test_the_table_marks_a_class_without_an_image(clipguard, answered, guide, tmp_path):
    answered()
    images = coloured_images(60)
    labels = np.where(images.labels == 3, 0, images.labels)
    np.savez(tmp_path / "five.npz", images=images.pixels, labels=labels, class_names=np.array(NAMES))
    ran = clipguard("guide", "check", guide.model, tmp_path / "five.npz", *CHECK)
    rows = [" ".join(line.split()) for line in ran.out.splitlines()]
    (row,) = [row for row in rows if row.startswith(NAMES[3])]
    assert row.startswith("ship 0 0.0% no image ")
    assert "not tried" not in row


def test_abd_does_not_count_images_that_are_called_so_without_a_pattern(guide, monkeypatch):
    # All images are of class 0 to this guide, whatever lies on them.
    monkeypatch.setattr(methods, "called", lambda clip, images, classes: np.zeros(len(images), np.int64))
    made = methods.universal_patterns(guide, coloured_images(), Inversion(steps=1), SEED)
    assert sorted(made.targets) == [0, 1, 2, 3, 4, 5]
    assert made.weights == pytest.approx(np.full(6, 1 / 6))


def test_clean_says_which_classes_have_a_pattern(clipguard, data, guide, tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "MOST_PATTERNS", 3)
    command = ("guide", "clean", guide.model, data, "--epochs", 1, *TEMPLATES)
    ran = clipguard(*command, "-o", tmp_path / "abd")
    assert "patterns for 3 of 6 classes" in ran.out.splitlines()
    about = read_json(tmp_path / "abd" / "cleaning.json")
    assert about["classes"] == 6
    assert [name for name in NAMES if name in about["pattern_classes"]] == about["pattern_classes"]
    assert len(about["pattern_classes"]) == 3
    ran = clipguard(*command, "-o", tmp_path / "cleanclip", "--method", "cleanclip")
    assert "patterns for" not in ran.out
    assert read_json(tmp_path / "cleanclip" / "cleaning.json")["pattern_classes"] == []


def test_images_that_the_scan_could_not_read_are_left_out(poisoned_folder_and_run, tmp_path):
    folder, run = (shutil.copytree(path, tmp_path / path.name) for path in poisoned_folder_and_run)
    kept, left_out = _without_untrusted(ImageSource.open(folder), run)
    torn = sorted(folder.glob("*/*"))[0].with_name("torn.jpg")
    torn.write_bytes(jpeg_header())
    source = ImageSource.open(folder)
    with pytest.raises(ClipguardError, match="is of other data: 1 of "):
        _without_untrusted(source, run)
    write_json(run / UNREADABLE, [{"id": torn.relative_to(folder).as_posix(), "reason": "torn"}])
    without, count = _without_untrusted(source, run)
    assert (without.ids, count) == (kept.ids, left_out + 1)
    write_json(run / UNREADABLE, [1])
    with pytest.raises(ClipguardError, match=r"unreadable\.json is damaged"):
        _without_untrusted(source, run)


@pytest.fixture
def torn_class(tmp_path):
    """Return a source whose third class has one readable and one torn image."""
    folder = image_folder(tmp_path / "images", n=20)
    (folder / "rare").mkdir()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(folder / "rare" / "good.png")
    (folder / "rare" / "torn.jpg").write_bytes(jpeg_header())
    return ImageSource.open(folder)


def test_a_sample_is_not_refused_for_what_lies_outside_it(guide, torn_class):
    assert torn_class.ids[-2:] == ("rare/good.png", "rare/torn.jpg")
    source = replace(torn_class, refused=tuple(Unreadable(f"{row}", "refused") for row in range(9)))
    # A draw of all images but the good one of the third class.
    seeds = (SEED.child("draw", number) for number in range(1000))
    seed = next(one for one in seeds if one.generator().permutation(22)[21] == 20)
    data, unreadable = drawn_images(guide, source, 21, seed, silent)
    assert (len(data), unreadable) == (20, 1)
    with pytest.raises(ClipguardError, match=r"10 of 31 images .* are unreadable"):
        drawn_images(guide, source, 22, seed, silent)


def test_data_that_are_read_as_a_whole_need_an_image_of_each_class(guide, torn_class, tmp_path):
    assert drawn_images(guide, torn_class, 22, SEED, silent)[1] == 1
    (tmp_path / "images" / "rare" / "good.png").unlink()
    with pytest.raises(ClipguardError, match=r"class 'rare' of .* has no readable image"):
        drawn_images(guide, ImageSource.open(tmp_path / "images"), 22, SEED, silent)


def test_a_place_is_tried_and_left_as_it_was(tmp_path):
    (tmp_path / "file").write_text("a")
    (tmp_path / "empty").mkdir()
    before = tree(tmp_path)
    for name in ("new", "empty", "several/new/folders"):
        check_writable(tmp_path / name)
    with pytest.raises(NotADirectoryError):
        check_writable(tmp_path / "file" / "new")
    with pytest.raises(OSError, match="too long"):
        check_writable(tmp_path / "several" / ("a" * 300))
    with pytest.raises(ClipguardError, match="not an empty folder"):
        check_writable(tmp_path)
    assert tree(tmp_path) == before


def test_clean_refuses_an_unusable_place_before_anything_is_read(refused, data, guide, monkeypatch):
    def read(*values):
        pytest.fail("images are read")

    monkeypatch.setattr(f"{PIPELINE}.drawn_images", read)
    refused("guide", "clean", guide.model, data, "-o", data / "made", expected=["Not a directory"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("command", ["check", "clean"])
def test_an_interrupted_command_says_that_it_starts_from_the_beginning(
    clipguard, data, tmp_path, monkeypatch, command, number, code
):
    def interrupted(*values):
        os.kill(os.getpid(), number)

    # Whoever started the tests in the background may have switched Ctrl-C off.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(f"clipguard.cli.guide.run_{command}", interrupted)
    out = ("-o", tmp_path / "made") if command == "clean" else ()
    ran = clipguard("guide", command, "mini", data, *out)
    signal.signal(signal.SIGINT, before)
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.endswith(": the same command starts from the beginning\n")


def test_a_divergence_in_the_last_step_is_seen(guide):
    settings = FineTuning(epochs=1, lr=1e30, batch_size=24, warmup=0)
    with pytest.raises(ClipguardError, match=r"diverged in epoch 1.*lower the rate"):
        cleaned(guide, coloured_images(24), Cleaning(method="cleanclip", fine_tuning=settings), SEED, ignored)


def test_a_weight_that_is_not_finite_after_the_last_step_is_seen(guide, monkeypatch):
    made, real = [], fine_tuning._optimizer
    monkeypatch.setattr(
        fine_tuning, "_optimizer", lambda network, settings: made.append(network) or real(network, settings)
    )

    def spoiled(done, total):
        made[0].visual.proj.data[0, 0] = float("inf")

    settings = Cleaning(method="cleanclip", fine_tuning=FineTuning(epochs=1, batch_size=24))
    with pytest.raises(ClipguardError, match="diverged in epoch 1: a weight is not finite; lower the rate"):
        cleaned(guide, coloured_images(24), settings, SEED, spoiled)


def test_agreement_is_not_measured_where_no_image_is_held_out(clipguard, guide, tmp_path):
    data = coloured_images(4)
    settings = Cleaning(method="cleanclip", fine_tuning=FineTuning(epochs=1))
    done = clean_guide(guide, data, settings, tmp_path / "made", {}, SEED, silent)
    assert (done.learned, done.held_out, done.before, done.after) == (4, 0, None, None)
    about = read_json(tmp_path / "made" / "cleaning.json")
    assert (about["agreement_before"], about["agreement_after"]) == (None, None)
    np.savez(tmp_path / "four.npz", images=data.pixels, labels=data.labels, class_names=np.array(NAMES))
    command = ("guide", "clean", guide.model, tmp_path / "four.npz", "--method", "cleanclip", "--epochs", 1)
    ran = clipguard(*command, "-o", tmp_path / "again", "--quiet")
    assert (ran.code, ran.out.splitlines()[0].startswith("agreement with labels: not measured")) == (0, True)
