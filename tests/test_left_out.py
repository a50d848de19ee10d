"""data.folder_layout: images that clipguard leaves out and other readers of image folders do not."""

import os

import pytest

from clipguard.data import ImageSource
from clipguard.data.folder_layout import AN_IMAGE, unread_images
from test_sources import png, write_folder

CLASSES = [f"{letter}/{number}.png" for letter in ("cat", "dog") for number in range(3)]


def left_out(root):
    """Return how many images are left out, and the reasons of all files that are."""
    skipped = ImageSource.open(root).skipped
    return unread_images(skipped), skipped


def read_by_torchvision(root):
    """Return the images that torchvision's ImageFolder finds in a folder, relative to it."""
    folder = pytest.importorskip("torchvision").datasets.ImageFolder(root, allow_empty=True)
    return {os.path.relpath(path, root) for path, _ in folder.samples}


@pytest.mark.parametrize(
    "names",
    [
        ["cat/.0001.png"],
        ["cat/.png"],
        ["cat/.hidden/1.png", "cat/.hidden/deeper/.2.JPG"],
        ["cat/masks/1.png", "dog/annotations/.hidden/1.png"],
        ["cat/__MACOSX/1.png", "dog/lost+found/1.png"],
        ["cat/more/.0001.png"],
        [".emu/1.png", ".emu/deeper/2.png"],
        ["annotations/1.xml", "annotations/.1.png"],
        ["__MACOSX/cat/1.png"],
    ],
)
def test_what_torchvision_reads_and_is_left_out_here_is_counted_as_images(tmp_path, names):
    write_folder(tmp_path, [*CLASSES, *names])
    ours = set(ImageSource.open(tmp_path).ids)
    others = read_by_torchvision(tmp_path) - ours
    assert len(others) == len([name for name in names if name.lower().endswith((".png", ".jpg"))])
    assert left_out(tmp_path)[0] == len(others)


def test_images_of_a_linked_folder_are_counted_and_not_read(tmp_path):
    write_folder(tmp_path / "far", ["1.png", "deeper/2.png", "notes.txt"])
    write_folder(tmp_path / "set", CLASSES)
    (tmp_path / "set/cat/link").symlink_to(tmp_path / "far")
    assert len(read_by_torchvision(tmp_path / "set")) == len(CLASSES) + 2
    assert left_out(tmp_path / "set") == (
        2,
        {"a link to a folder": 1, "a link to a folder" + AN_IMAGE: 2},
    )
    assert sorted(ImageSource.open(tmp_path / "set").ids) == sorted(CLASSES)


def test_the_images_of_another_class_that_a_link_brings_in_are_counted_each_time(tmp_path):
    write_folder(tmp_path, CLASSES)
    for name in ("a", "b"):
        (tmp_path / "cat" / name).symlink_to(tmp_path / "dog")
    assert left_out(tmp_path)[0] == 6


def test_a_link_in_a_circle_ends(tmp_path):
    write_folder(tmp_path, [*CLASSES, "cat/.a/1.png"])
    (tmp_path / "cat/.a/up").symlink_to(tmp_path / "cat/.a")
    (tmp_path / "cat/.self").symlink_to(".self")
    assert left_out(tmp_path) == (1, {"hidden": 2, "hidden" + AN_IMAGE: 1})


def test_a_link_to_more_than_is_looked_at_counts_as_images(tmp_path, monkeypatch):
    monkeypatch.setattr("clipguard.data.folder_layout.MOST_COUNTED", 5)
    write_folder(tmp_path / "far", [f"{number}.txt" for number in range(9)])
    write_folder(tmp_path / "set", CLASSES)
    (tmp_path / "set/cat/link").symlink_to(tmp_path / "far")
    assert left_out(tmp_path / "set")[0] == 5


def test_what_macos_puts_beside_each_file_is_no_image(tmp_path):
    write_folder(tmp_path, [*CLASSES, "cat/._2.png"])
    (tmp_path / "cat/._1.png").write_bytes(b"\x00\x05\x16\x07" + bytes(100))
    assert left_out(tmp_path) == (1, {"hidden": 1, "hidden" + AN_IMAGE: 1})


def test_files_that_no_image_folder_reads_change_no_answer(tmp_path):
    write_folder(tmp_path, [*CLASSES, "cat/.DS_Store", "1.png", ".2.png", "cat/.git/HEAD", "logs/a.txt"])
    assert left_out(tmp_path)[0] == 0


def test_a_hidden_folder_that_may_not_be_read_stops_nothing(tmp_path, monkeypatch):
    write_folder(tmp_path, [*CLASSES, "cat/.trash/1.png"])
    scandir = os.scandir

    def closed(path):
        if str(path).endswith(".trash"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert left_out(tmp_path) == (0, {"hidden": 1})


def test_images_that_a_table_does_not_name_are_no_part_of_it_wherever_they_lie(tmp_path):
    write_folder(tmp_path, [*CLASSES, "cat/.1.png", "cat/masks/1.png"])
    rows = [f"{name},{name[:3]}" for name in CLASSES[1:]]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    assert left_out(tmp_path) == (
        0,
        {"hidden": 1, "in a folder called masks": 1, "not in metadata.csv": 1},
    )


def test_images_are_counted_whatever_else_is_left_out(tmp_path):
    write_folder(tmp_path, [*CLASSES, *(f"cat/1.x{number}" for number in range(40)), "dog/.1.png"])
    (tmp_path / "dog/z.heic").write_bytes(png(1))
    images, skipped = left_out(tmp_path)
    assert images == 2
    assert skipped["other kinds of files"] > 10
