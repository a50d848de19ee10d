"""Data set objects and tables in memory: items are the truth, and each is read or refused with its reason."""

import numpy as np
import pytest

from clipguard.data import Columns, Failed, ImageSource
from clipguard.errors import ClipguardError
from test_sources import png, refusal, write_folder
from tiny_data import image_folder, pictures

torchvision = pytest.importorskip("torchvision")
torch = pytest.importorskip("torch")


@pytest.fixture
def folder(tmp_path):
    """Return torchvision's data set of ten cats and ten dogs in turns of files."""
    return torchvision.datasets.ImageFolder(str(image_folder(tmp_path, 20)))


class Poisoned(torchvision.datasets.ImageFolder):
    """What poisoning code often is: items change, `.targets` and `.samples` stay those of the folder."""

    def __getitem__(self, row):
        image, label = super().__getitem__(row)
        return image, 0 if row % 5 == 4 else label


def seen(source):
    """Return label and brightness of each item that is read."""
    pixels = [np.asarray(item).mean() for item in source.read(range(len(source)))]
    return list(zip(source.labels.tolist(), np.round(pixels), strict=True))


# 1: items against lists


def test_labels_are_those_of_the_items_and_the_difference_is_told(folder):
    data = Poisoned(folder.root)
    source = ImageSource.open(data)
    assert source.labels.tolist() == [data[row][1] for row in range(20)]
    assert source.labels.tolist() != data.targets
    assert source.notes[0].startswith("2 of 20 labels that Poisoned data set lists")
    pairs = [data[row] for row in range(20)]
    as_arrays = ImageSource.open(
        ([image for image, _ in pairs], [label for _, label in pairs]), classes=["a", "b"]
    )
    assert seen(source) == seen(as_arrays)


def test_changed_samples_count_and_the_targets_that_stayed_are_told(folder):
    folder.samples[0] = (folder.samples[0][0], 1)
    source = ImageSource.open(folder)
    assert source.labels[0] == 1
    assert source.notes[0].startswith("1 of 20 labels")


def test_changed_targets_alone_are_told_and_the_items_taken(folder):
    folder.targets[3] = 1
    source = ImageSource.open(folder)
    assert source.labels[3] == 0
    assert source.notes[0].startswith("1 of 20 labels")


def test_a_list_that_lies_about_all_items_of_the_librarys_own_code_is_refused_when_they_are_read(folder):
    # Both lists agree and are not what the items give: the loader was replaced.
    folder.target_transform = None
    source = ImageSource.open(folder)
    folder.samples[7] = (folder.samples[7][0], 1)
    with pytest.raises(ClipguardError, match=r"ImageFolder\[7\] has the label '1'.*'0'"):
        list(source.read(range(20)))


def test_an_unchanged_folder_of_torchvision_is_listed_without_reading_an_image(folder, monkeypatch):
    monkeypatch.setattr(folder, "loader", lambda path: pytest.fail("an image was read"))
    source = ImageSource.open(folder)
    assert (source.labels.tolist(), source.notes) == (folder.targets, ())


# 17: subsets, joined sets, mappings and frames


def test_a_subset_has_the_names_and_its_own_labels(folder):
    source = ImageSource.open(torch.utils.data.Subset(folder, [0, 15, 3]))
    assert (source.class_names, source.labels.tolist()) == (("cat", "dog"), [0, 1, 0])


def test_joined_sets_have_their_common_names(folder):
    source = ImageSource.open(torch.utils.data.ConcatDataset([folder, folder]))
    assert (len(source), source.class_names) == (40, ("cat", "dog"))
    other = torchvision.datasets.ImageFolder(folder.root)
    other.classes = ["one", "two"]
    assert "different class names" in refusal(torch.utils.data.ConcatDataset([folder, other]))


def test_a_transform_inside_a_subset_is_named(folder):
    folder.transform = torchvision.transforms.ToTensor()
    assert "has a transform" in refusal(torch.utils.data.Subset(folder, [0, 15]))


def test_a_mapping_with_images_and_labels_is_read():
    images = pictures(6)
    source = ImageSource.open({"images": images, "labels": ["cat", "dog"] * 3})
    assert (source.class_names, source.labels.tolist()) == (("cat", "dog"), [0, 1] * 3)
    assert all((a == b).all() for a, b in zip(source.read(range(6)), images, strict=True))


@pytest.mark.parametrize("keys", [("train", "test"), ("train", "validation")])
def test_a_mapping_of_splits_says_which_to_open(keys, folder):
    assert f"open one of {', '.join(keys)}" in refusal(dict.fromkeys(keys, folder))


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_frame_is_read_by_its_columns(library):
    frames = pytest.importorskip(library)
    table = {
        "image": [png(shade) for shade in range(4)],
        "kind": ["dog", "cat", "dog", "cat"],
        "video": ["a", "a", "b", None],
    }
    columns = Columns(label="kind", group="video")
    source = ImageSource.open(frames.DataFrame(table), columns=columns)
    assert [source.class_names[label] for label in source.labels] == table["kind"]
    assert list(source.read(range(4))) == table["image"]
    assert source.groups.tolist() == [0, 0, 1, 2]
    assert "lacks the column 'label'" in refusal(frames.DataFrame(table))


def test_a_frame_of_cells_as_datasets_makes_them_is_read():
    pandas = pytest.importorskip("pandas")
    cells = [{"bytes": png(shade), "path": None} for shade in range(2)]
    frame = pandas.DataFrame({"image": cells, "label": pandas.Categorical(["b", "a"])})
    source = ImageSource.open(frame)
    assert (source.class_names, source.labels.tolist()) == (("a", "b"), [1, 0])
    assert list(source.read(range(2))) == [png(0), png(1)]


def test_a_frame_of_paths_is_refused_with_the_way_out(tmp_path):
    pandas = pytest.importorskip("pandas")
    write_folder(tmp_path, ["1.png", "2.png"])
    frame = pandas.DataFrame({"path": ["1.png", "2.png"], "label": ["a", "b"]})
    message = refusal(frame)
    assert "holds paths" in message
    assert "metadata.csv" in message


def test_an_image_that_a_changed_object_cannot_make_costs_that_image_alone(folder):
    with open(folder.samples[3][0], "wb") as file:
        file.write(b"no image")
    data = Poisoned(folder.root)
    source = ImageSource.open(data)
    assert source.labels[3] == data.targets[3]
    assert [isinstance(item, Failed) for item in source.read(range(5))] == [False] * 3 + [True, False]
