"""data: every kind of source gives the same five things, and bad input gives one clear line."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipguard.data import Failed, ImageSource
from clipguard.data.folder import OUTSIDE
from clipguard.data.listing import unique_ids
from clipguard.errors import ClipguardError
from clipguard.safety.limits import Limits

NAMES = ("cat", "dog", "frog")


def png(shade: int, size: tuple[int, int] = (5, 4)) -> bytes:
    """Return a small one-coloured PNG."""
    file = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


def write_folder(root, files):
    """Write PNGs at the given paths."""
    for number, name in enumerate(files):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(number))
    return root


def refusal(what, **options) -> str:
    """Return the one line with which `what` is refused."""
    with pytest.raises(ClipguardError) as caught:
        ImageSource.open(what, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "set", ["b_b/2.png", "a/deep/1.JPG", "a/1.png", "b_b/10.png"])


# Folders


def test_a_folder_is_listed_by_class_and_path_whatever_the_disk_says(folder):
    source = ImageSource.open(folder)
    assert source.kind == "folder"
    assert source.ids == ("a/1.png", "a/deep/1.JPG", "b_b/10.png", "b_b/2.png")
    assert source.labels.tolist() == [0, 0, 1, 1]
    assert source.class_names == ("a", "b b")
    assert source.labels.dtype == np.int64


def test_what_opens_the_same_elsewhere_depends_on_no_working_folder(folder, monkeypatch):
    (folder.parent / "names.txt").write_text("ape\nbee\n")
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.chdir(folder.parent)
    for path, names in (("set", "names.txt"), ("~/set", "~/names.txt")):
        monkeypatch.chdir(folder.parent)
        source = ImageSource.open(path, classes=names)
        assert source.opened.path == folder
        monkeypatch.chdir("/")
        assert source.opened.open().class_names == source.class_names == ("ape", "bee")


def test_hidden_and_foreign_files_are_no_images(folder):
    for name in ("a/.hidden.png", "a/notes.txt", "readme.md", ".git/x.png", "a/.thumbs/x.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(png(0))
    source = ImageSource.open(folder)
    assert len(source) == 4


def test_a_pipe_named_like_an_image_does_not_hang_the_reading_and_is_listed(folder):
    os.mkfifo(folder / "a" / "0.png")
    assert list(ImageSource.open(folder).read(range(1))) == [Failed("no regular file")]


def test_folders_nested_deeper_than_calls_may_be_are_read(folder):
    deepest = str(folder / "a")
    for _ in range(1200):
        deepest += "/d"
        os.mkdir(deepest)
    Path(deepest, "9.png").write_bytes(png(9))
    try:
        assert png(9) in list(ImageSource.open(folder).read(range(5)))
    finally:
        # The standard library removes folders by calls of itself, and could not.
        Path(deepest, "9.png").unlink()
        while deepest.endswith("/d"):
            os.rmdir(deepest)
            deepest = deepest[:-2]


@pytest.mark.parametrize("count", [2000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_folder_of_very_many_files_is_listed_whole(tmp_path, count):
    write_folder(tmp_path, ["b/1.png"])
    (tmp_path / "a").mkdir()
    for number in range(count):
        os.close(os.open(f"{tmp_path}/a/{number}.png", os.O_CREAT))
    source = ImageSource.open(tmp_path)
    assert len(source) == len(set(source.ids)) == count + 1


def test_links_that_leave_the_folder_are_followed_only_when_allowed(folder, tmp_path):
    (tmp_path / "outside.png").write_bytes(png(50))
    (folder / "a/0.png").symlink_to(tmp_path / "outside.png")
    (folder / "a/2.png").symlink_to(folder / "a/1.png")
    strict = list(ImageSource.open(folder).read(range(6)))
    assert strict[0] == Failed(OUTSIDE)
    assert strict[2] == png(2)
    assert next(ImageSource.open(folder, limits=Limits(links=True)).read(range(1))) == png(50)


def test_a_class_folder_without_images_is_named_and_keeps_its_index(folder):
    (folder / "aa").mkdir()
    source = ImageSource.open(str(folder))
    assert source.class_names == ("a", "aa", "b b")
    assert source.labels.tolist() == [0, 0, 2, 2]
    assert source.empty_classes == ("aa",)


def test_a_file_name_that_is_no_utf8_gets_an_id_that_can_be_written(folder):
    try:
        Path(os.fsdecode(os.fsencode(folder) + b"/a/\xff.png")).write_bytes(png(7))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    source = ImageSource.open(folder)
    assert "a/\\udcff.png" in source.ids
    assert png(7) in list(source.read(range(5)))


def test_a_file_that_vanishes_after_listing_is_an_item_not_a_crash(folder):
    source = ImageSource.open(folder)
    (folder / "a/1.png").unlink()
    items = list(source.read(range(4)))
    assert isinstance(items[0], Failed)
    assert "No such file" in items[0].reason
    assert items[3] == png(0)


def test_splits_are_not_taken_for_classes(tmp_path):
    write_folder(tmp_path, ["train/cat/1.png", "train/dog/1.png", "val/cat/1.png"])
    message = refusal(tmp_path)
    assert "train, val" in message
    assert ImageSource.open(tmp_path / "train").class_names == ("cat", "dog")


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "loose.png").write_bytes(png(0))
    assert "no images found" in refusal(tmp_path)


def test_a_folder_of_one_class_is_refused(tmp_path):
    write_folder(tmp_path, ["cat/1.png", "cat/2.png"])
    assert "one class only, 'cat'" in refusal(tmp_path)


def test_what_does_not_exist_is_refused_by_name(tmp_path):
    assert str(tmp_path / "nowhere") in refusal(tmp_path / "nowhere")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "cat.png").write_bytes(png(0))
    assert "is no data set" in refusal(tmp_path / "cat.png")


# Class names


def test_names_given_replace_those_of_the_folders(folder, tmp_path):
    (tmp_path / "names.txt").write_text("tabby cat\nnewt\n\n", "utf-8")
    (tmp_path / "list.json").write_text('["tabby cat", "newt"]')
    (tmp_path / "map.json").write_text('{"b_b": "newt", "a": "tabby cat", "c": "unused"}')
    (tmp_path / "numbers.json").write_text('{"1": "newt", "0": "tabby cat"}')
    files = [tmp_path / name for name in ("names.txt", "list.json", "map.json", "numbers.json")]
    for classes in (*files, str(files[0]), ["tabby cat", "newt"], {"a": "tabby cat", "b_b": "newt"}):
        assert ImageSource.open(folder, classes=classes).class_names == ("tabby cat", "newt")


def test_another_number_of_names_than_of_folders_is_refused(folder):
    message = refusal(folder, classes=["a", "b", "c"])
    assert "3 names" in message
    assert "2 classes" in message


def test_a_name_that_is_missing_from_the_mapping_is_named(folder):
    assert "'b_b'" in refusal(folder, classes={"a": "tabby cat", "c": "newt"})


@pytest.mark.parametrize("text", ['{"a": 1, "b_b": 2}', '["a", " "]', "7", "{", "[" * 100_000])
def test_a_json_file_without_names_is_refused(folder, tmp_path, text):
    (tmp_path / "names.json").write_text(text)
    assert "names.json" in refusal(folder, classes=tmp_path / "names.json")


def test_a_missing_file_of_names_is_refused(folder):
    assert "cannot be read" in refusal(folder, classes="nowhere.txt")


# Data set objects


def test_a_torchvision_folder_gives_its_images_names_and_targets(folder):
    torchvision = pytest.importorskip("torchvision")
    data = torchvision.datasets.ImageFolder(str(folder))
    source = ImageSource.open(data)
    assert source.kind == "torchvision"
    assert source.class_names == ("a", "b_b")
    assert source.labels.tolist() == data.targets
    assert [image.getpixel((0, 0)) for image in source.read(range(4))] == [
        (shade, shade, shade) for shade in (2, 1, 3, 0)
    ]


def test_a_torchvision_data_set_with_a_transform_is_refused(folder):
    torchvision = pytest.importorskip("torchvision")
    data = torchvision.datasets.ImageFolder(str(folder), transform=torchvision.transforms.ToTensor())
    assert "has a transform" in refusal(data)


def test_an_image_that_the_object_cannot_decode_is_an_item_not_a_crash(folder):
    torchvision = pytest.importorskip("torchvision")
    (folder / "a/1.png").write_bytes(b"not an image")
    items = list(ImageSource.open(torchvision.datasets.ImageFolder(str(folder))).read(range(4)))
    assert isinstance(items[0], Failed)
    assert not any(isinstance(item, Failed) for item in items[1:])


def test_any_list_of_pairs_is_a_source_once_it_has_names():
    pairs = [(np.full((2, 2, 3), i, np.uint8), i % 2) for i in range(4)]
    source = ImageSource.open(pairs, classes=NAMES)
    assert source.labels.tolist() == [0, 1, 0, 1]
    assert [item[0, 0, 0] for item in source.read(np.array([1, 3]))] == [1, 3]


def test_of_synonyms_the_first_is_the_name():
    class Listed(list):
        classes = (("tench", "Tinca tinca"), ("goldfish",))

    pairs = Listed((np.zeros((2, 2), np.uint8), i) for i in range(2))
    assert ImageSource.open(pairs).class_names == ("tench", "goldfish")


def test_pairs_of_tensors_are_refused_when_read():
    torch = pytest.importorskip("torch")
    source = ImageSource.open([(torch.zeros(3, 2, 2), i) for i in range(2)], classes=NAMES)
    with pytest.raises(ClipguardError, match="Tensor for an image"):
        list(source.read(range(2)))


@pytest.mark.parametrize(
    "what", [7, None, {"train": [], "test": []}, np.zeros((2, 2)), [1, 2], "", [(1, 2, 3)]]
)
def test_anything_else_is_refused(what):
    assert refusal(what, classes=NAMES)


def test_a_hugging_face_data_set_gives_its_bytes_names_and_labels(tmp_path):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "outside.png").write_bytes(png(40))
    images = [{"bytes": png(10 * i), "path": None} for i in range(4)]
    images[3] = {"bytes": None, "path": str(tmp_path / "outside.png")}
    features = datasets.Features(img=datasets.Image(), fine=datasets.ClassLabel(names=list(NAMES)))
    data = datasets.Dataset.from_dict({"img": images, "fine": [0, 2, 1, 1]}, features)
    source = ImageSource.open(data)
    assert source.kind == "datasets"
    assert source.class_names == NAMES
    assert source.labels.tolist() == [0, 2, 1, 1]
    assert list(source.read(range(4))) == [png(0), png(10), png(20), png(40)]
    assert list(ImageSource.open(data.with_format("numpy").select([2, 1])).read(range(2))) == [
        png(20),
        png(10),
    ]


def test_hugging_face_images_are_read_within_the_limits(tmp_path):
    datasets = pytest.importorskip("datasets")
    files = [tmp_path / f"{row}.png" for row in range(2)]
    for row, file in enumerate(files):
        file.write_bytes(png(row))
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
    data = datasets.Dataset.from_dict({"image": [str(file) for file in files], "label": [0, 1]}, features)
    assert list(ImageSource.open(data).read(range(2))) == [png(0), png(1)]
    for item in ImageSource.open(data, limits=Limits(file_bytes=10)).read(range(2)):
        assert isinstance(item, Failed)
        assert "more than the limit of 10" in item.reason


def test_hugging_face_data_sets_of_other_forms_are_refused():
    datasets = pytest.importorskip("datasets")
    text = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    assert "one Image column" in refusal(text)
    assert "open one of train" in refusal(datasets.DatasetDict(train=text))
    assert "stream" in refusal(text.to_iterable_dataset())


# The object


def test_reading_or_taking_out_of_order_is_a_mistake_of_the_caller(folder):
    source = ImageSource.open(folder)
    for rows in ([1, 0], [1, 1], [-1, 0]):
        with pytest.raises(ValueError, match="ascend"):
            source.take(np.array(rows))
        with pytest.raises(ValueError, match="ascend"):
            source.read(np.array(rows))


def test_what_is_taken_keeps_all_class_names(folder):
    part = ImageSource.open(folder).take(np.array([2, 3]))
    assert part.ids == ("b_b/10.png", "b_b/2.png")
    assert part.class_names == ("a", "b b")
    assert part.empty_classes == ("a",)
    assert list(part.read(range(2))) == [png(3), png(0)]


def test_a_sub_set_of_a_sub_set_still_reads_its_own_images():
    images = np.arange(10, dtype=np.uint8).repeat(4).reshape(10, 2, 2)
    source = ImageSource.open((images, [0, 1] * 5), classes=["a", "b"], rows=(2, 9))
    part = source.take(np.array([1, 3, 4, 6])).take(np.array([1, 3]))
    assert part.ids == ("5", "8")
    assert part.labels.tolist() == [1, 0]
    assert [item[0, 0] for item in part.read(range(2))] == [5, 8]


def test_a_source_says_in_one_short_line_what_it_is(folder):
    assert len(repr(ImageSource.open(folder))) < 200 + len(str(folder))


@given(st.lists(st.sampled_from(["a", "a#2", "a#3", "\udcff", "\\udcff", "b"])))
def test_ids_become_unique_and_the_first_of_each_keeps_its_name(names):
    made = unique_ids(names)
    assert len(set(made)) == len(names)
    assert {name.encode("utf-8", "backslashreplace").decode() for name in names} <= set(made)
