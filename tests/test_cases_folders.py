"""Image folders as people have them: splits, numbers, files of other kinds, tables of labels, links."""

import os

import numpy as np
import pytest

from clipguard.data import Columns, Failed, ImageSource
from clipguard.errors import ClipguardError
from clipguard.safety.limits import Limits
from test_sources import png, refusal, write_folder

CLASSES = [f"{letter}/{number}.png" for letter in ("cat", "dog") for number in range(3)]


def names_of_images(source):
    """Return the class name of each image by its path."""
    return {name: source.class_names[label] for name, label in zip(source.ids, source.labels, strict=True)}


# 2: splits


@pytest.mark.parametrize(
    "folders",
    [
        ("train", "val", "extra"),
        ("train", "eval"),
        ("Train_set", "images_val", "docs"),
        ("train2017", "val2017"),
        ("train", "more"),
    ],
)
def test_a_root_of_splits_is_no_set_of_classes(tmp_path, folders):
    write_folder(tmp_path, [f"{folder}/{name}" for folder in folders for name in CLASSES])
    message = refusal(tmp_path)
    assert "holds splits" in message
    assert (
        f"open one, such as {tmp_path / min(f for f in folders if f not in ('extra', 'docs', 'more'))}"
        in message
    )


def test_a_class_may_be_called_train(tmp_path):
    write_folder(tmp_path, ["bus/1.png", "train/1.png", "tram/1.png"])
    assert ImageSource.open(tmp_path).class_names == ("bus", "train", "tram")


def test_a_folder_around_the_classes_is_refused_with_what_to_open(tmp_path):
    write_folder(tmp_path, [f"archive/{name}" for name in CLASSES])
    assert f"open {tmp_path / 'archive'}" in refusal(tmp_path)


# 3: numbers


@pytest.mark.parametrize("prefix", ["", "class_"])
def test_numbered_folders_are_ordered_by_number_and_get_the_names_of_their_numbers(tmp_path, prefix):
    write_folder(tmp_path / "set", [f"{prefix}{number}/1.png" for number in range(12)])
    (tmp_path / "names.txt").write_text("\n".join(f"word {number}" for number in range(12)))
    source = ImageSource.open(tmp_path / "set", classes=tmp_path / "names.txt")
    assert names_of_images(source) == {f"{prefix}{n}/1.png": f"word {n}" for n in range(12)}
    assert source.labels.tolist() == list(range(12))
    assert any("ordered by their numbers" in note for note in source.notes)
    assert any("'" + prefix + "0' is 'word 0'" in note for note in source.notes)


def test_numbers_from_one_that_another_library_ordered_as_text_get_their_names_too():
    class Listed(list):
        classes = tuple(sorted(str(number) for number in range(1, 12)))

    pairs = Listed((np.zeros((2, 2), np.uint8), label) for label in range(11))
    source = ImageSource.open(pairs, classes=[f"word {number}" for number in range(1, 12)])
    assert source.class_names == tuple(f"word {name}" for name in Listed.classes)


def test_numbers_with_gaps_in_the_order_of_text_are_not_guessed():
    class Listed(list):
        classes = ("10", "2", "7")

    pairs = Listed((np.zeros((2, 2), np.uint8), label) for label in range(3))
    assert ".json object" in refusal(pairs, classes=["ten", "two", "seven"])


def test_names_in_another_order_than_the_folders_are_refused(tmp_path):
    write_folder(tmp_path, CLASSES)
    assert "calls class 'cat'" in refusal(tmp_path, classes=["dog", "cat"])
    assert ImageSource.open(tmp_path, classes={"dog": "cat", "cat": "dog"}).class_names == ("dog", "cat")


# 4 and 10: what is left out is counted


def test_files_that_are_left_out_are_counted_by_reason(tmp_path):
    others = ["cat/1.heic", "cat/2.heic", "dog/noend", "dog/masks/1.png", "dog/.DS_Store", "readme.md"]
    write_folder(tmp_path / "set", [*CLASSES, *others])
    (tmp_path / "linked").mkdir()
    (tmp_path / "set/cat/link").symlink_to(tmp_path / "linked")
    source = ImageSource.open(tmp_path / "set")
    assert sorted(source.ids) == sorted(CLASSES)
    assert source.skipped == {
        ".heic, a format that is not read": 2,
        "no suffix": 1,
        "in a folder called masks, an image by its name": 1,
        "hidden": 1,
        "beside the class folders": 1,
        "a link to a folder": 1,
    }


def test_images_in_sub_folders_of_a_class_are_said_to_belong_to_it(tmp_path):
    write_folder(tmp_path, [*CLASSES, "cat/more/1.png"])
    assert "1 images lie in sub-folders" in ImageSource.open(tmp_path).notes[0]


def test_folders_of_the_system_and_of_notes_are_no_classes(tmp_path):
    aside = ["__MACOSX/cat/._1.png", "__MACOSX/cat/2.png", "lost+found/x", "annotations/1.xml", "logs/a.txt"]
    write_folder(tmp_path, [*CLASSES, *aside])
    source = ImageSource.open(tmp_path)
    assert source.class_names == ("cat", "dog")
    assert source.skipped == {
        "in a folder called __macosx, an image by its name": 2,
        "in a folder called lost+found": 1,
        "in a folder called annotations": 1,
        "in a folder called logs": 1,
    }


def test_a_class_of_wooden_logs_is_a_class(tmp_path):
    write_folder(tmp_path, [*CLASSES, "logs/1.png"])
    assert ImageSource.open(tmp_path).class_names == ("cat", "dog", "logs")


# 4: the table of Hugging Face's imagefolder


def table_of(root, kind):
    """Write six images and a table of five of them, in one of two forms."""
    write_folder(root, [f"{number}.png" for number in range(6)])
    labels = ["dog", "cat", "dog", "cat", "cat"]
    if kind == "csv":
        rows = [f"{row}.png,{label},v{row // 2}" for row, label in enumerate(labels)]
        text = "\n".join(["file_name,label,video", *rows])
    else:
        rows = enumerate(labels)
        text = "\n".join(f'{{"file_name": "{n}.png", "label": "{x}", "video": "v{n // 2}"}}' for n, x in rows)
    (root / f"metadata.{kind}").write_text(text)
    return root


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_table_beside_the_images_gives_their_labels_and_groups(tmp_path, kind):
    source = ImageSource.open(table_of(tmp_path, kind), columns=Columns(group="video"))
    assert names_of_images(source) == {
        "0.png": "dog",
        "1.png": "cat",
        "2.png": "dog",
        "3.png": "cat",
        "4.png": "cat",
    }
    assert source.skipped == {f"not in metadata.{kind}": 1}
    assert source.groups.tolist() == [0, 0, 1, 1, 2]
    assert list(source.read(range(5))) == [png(number) for number in range(5)]


def test_the_key_of_a_source_with_a_table_changes_with_the_table(tmp_path):
    before = ImageSource.open(table_of(tmp_path, "csv")).key
    file = tmp_path / "metadata.csv"
    file.write_text(file.read_text().replace("v0", "v9"))
    assert ImageSource.open(tmp_path).key != before


@pytest.mark.parametrize(
    "path", ["../x.png", "/etc/passwd", "a/../../x.png", "C:/x.png", "a\\..\\..\\x.png", ""]
)
def test_a_table_names_no_file_outside_its_folder(tmp_path, path):
    file = table_of(tmp_path / "set", "csv") / "metadata.csv"
    write_folder(tmp_path, ["x.png"])
    file.write_text(file.read_text() + f"\n{path},cat,v9")
    source = ImageSource.open(tmp_path / "set")
    assert len(source) == 5
    assert [entry.reason.startswith("a path that leads out") for entry in source.refused] == [True]


def test_a_link_inside_the_folder_does_not_lead_a_table_out_of_it(tmp_path):
    file = table_of(tmp_path / "set", "csv") / "metadata.csv"
    write_folder(tmp_path, ["out/x.png"])
    (tmp_path / "set/way").symlink_to(tmp_path / "out")
    file.write_text(file.read_text() + "\nway/x.png,cat,v9")
    items = list(ImageSource.open(tmp_path / "set").read(range(6)))
    assert isinstance(items[5], Failed)
    assert "--limits.links" in items[5].reason


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,label\n1,cat", "lacks the column 'file_name'"),
        ("file_name,label\n0.png,cat\n0.png,dog", "names '0.png' twice"),
        ("file_name,label\n0.png,cat,more", "another number of fields"),
        ("file_name,class,target\n0.png,cat,1", "several columns for a label"),
        ("file_name,label\n0.png,", "null labels"),
    ],
)
def test_a_damaged_table_is_refused_in_one_line(tmp_path, text, message):
    write_folder(tmp_path, ["0.png", "1.png"])
    (tmp_path / "metadata.csv").write_text(text)
    assert message in refusal(tmp_path)


def test_a_table_without_labels_leaves_them_to_the_folders_and_may_give_groups(tmp_path):
    write_folder(tmp_path, CLASSES)
    rows = "\n".join(f"{name},{place // 2}" for place, name in enumerate(CLASSES))
    (tmp_path / "metadata.csv").write_text("file_name,patient\n" + rows)
    source = ImageSource.open(tmp_path, columns=Columns(group="patient"))
    assert source.class_names == ("cat", "dog")
    assert source.groups.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_label_that_is_another_folders_name_is_told(tmp_path):
    write_folder(tmp_path, CLASSES)
    rows = [f"{name},{'dog' if name == 'cat/1.png' else name[:3]}" for name in CLASSES]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    assert any(note.startswith("1 of 6 images lie in a folder") for note in ImageSource.open(tmp_path).notes)


# 16: links


def test_links_out_of_the_folder_are_refused_with_the_option_that_allows_them(tmp_path):
    write_folder(tmp_path, ["set/cat/1.png", "set/dog/1.png", "far/1.png"])
    os.symlink(tmp_path / "far/1.png", tmp_path / "set/dog/2.png")
    item = list(ImageSource.open(tmp_path / "set").read(range(3)))[2]
    assert isinstance(item, Failed)
    assert "allow it with --limits.links" in item.reason
    os.symlink(tmp_path / "far", tmp_path / "set/emu")
    with pytest.raises(ClipguardError, match=r"--limits\.links"):
        ImageSource.open(tmp_path / "set")
    assert len(ImageSource.open(tmp_path / "set", limits=Limits(links=True))) == 4


def test_masks_nested_deeper_than_calls_may_be_are_counted(tmp_path):
    write_folder(tmp_path, CLASSES)
    deepest = str(tmp_path / "cat/masks")
    for _ in range(1200):
        os.mkdir(deepest)
        deepest += "/d"
    with open(deepest, "wb") as file:
        file.write(png(1))
    try:
        assert ImageSource.open(tmp_path).skipped == {"in a folder called masks": 1}
    finally:
        # The standard library removes folders by calls of itself, and could not.
        os.unlink(deepest)
        while deepest.endswith("/d"):
            deepest = deepest[:-2]
            os.rmdir(deepest)


def test_names_of_folders_that_are_no_text_can_be_said(tmp_path):
    for number in range(11):
        folder = os.fsencode(tmp_path) + b"/\xff" + str(number).encode()
        try:
            os.mkdir(folder)
        except OSError:
            pytest.skip("this file system takes UTF-8 names only")
        with open(folder + b"/1.png", "wb") as file:
            file.write(png(number))
    for note in ImageSource.open(tmp_path).notes:
        assert note.encode("utf-8")
