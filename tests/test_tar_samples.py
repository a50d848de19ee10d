"""data.tar: which files of a shard are one sample, what its label is, and what is left out."""

import json

import pytest

from clipguard.data import Columns, ImageSource
from tar_files import add_special, picture, samples, write_tar
from test_sources import refusal

NAMES = ["cat", "dog"]


def opened(path, **options) -> ImageSource:
    """Return the source with two class names."""
    return ImageSource.open(path, classes=NAMES, **options)


def labelled(cls=("0", "1", "0", "1"), fields=None, ending="png"):
    """Return four samples with a label in .cls, in .json, or in both."""
    files = {}
    for row in range(4):
        files[f"{row}.{ending}"] = picture(row)
        if cls is not None:
            files[f"{row}.cls"] = cls[row].encode()
        if fields is not None:
            files[f"{row}.json"] = json.dumps(fields[row]).encode()
    return files


# Which files belong together


@pytest.mark.parametrize("between", ["z.pkl", "z.txt"])
def test_two_runs_of_one_key_are_two_samples_whatever_stands_between_them(tmp_path, between):
    files = {
        "a.png": picture(1),
        "a.json": b'{"label": 0}',
        between: b"x",
        "a.jpg": picture(2),
        "a.cls": b"1",
    }
    source = opened(write_tar(tmp_path / "x.tar", files))
    assert source.ids == ("x.tar/a", "x.tar/a#2")
    assert source.labels.tolist() == [0, 1]


def test_a_hidden_file_breaks_no_sample(tmp_path):
    files = {"a.png": picture(1), "._a.cls": b"x", "a.cls": b"0"}
    assert len(opened(write_tar(tmp_path / "x.tar", files | samples(2)))) == 3


# Pickles


@pytest.mark.parametrize("ending", ["pth", "features.pkl"])
def test_pickles_beside_images_are_counted_and_no_image_is_lost(tmp_path, ending):
    files = {}
    for name, content in samples(6).items():
        files |= (
            {name: content, f"{name[:4]}.{ending}": b"payload"} if name.endswith("png") else {name: content}
        )
    source = opened(write_tar(tmp_path / "x.tar", files | {"model.pt": b"payload"}))
    assert len(source) == 6
    assert source.refused == ()
    assert source.skipped == {"a pickle, which is never loaded": 7}


@pytest.mark.parametrize("name", ["0009.pyd", "0009.model.pth"])
def test_a_pickle_in_an_images_place_is_an_image_that_cannot_be_read(tmp_path, name):
    source = opened(write_tar(tmp_path / "x.tar", {**samples(4), name: b"payload", "0009.cls": b"0"}))
    assert len(source) == 4
    assert [(entry.id, entry.reason) for entry in source.refused] == [
        (f"x.tar/{name}", "a pickle, which is never loaded")
    ]


def test_a_pickle_beside_an_image_that_is_a_link_loses_one_image(tmp_path):
    path = write_tar(tmp_path / "x.tar", {**samples(4), "9.cls": b"0", "9.pth": b"payload"})
    source = opened(add_special(path, "9.png", b"2"))
    assert [entry.reason for entry in source.refused] == ["a symbolic link"]
    assert source.skipped["a pickle, which is never loaded"] == 1


def test_an_archive_of_pickles_alone_is_refused_with_their_number(tmp_path):
    message = refusal(write_tar(tmp_path / "x.tar", {"a.pyd": b"x", "b.pyd": b"x"}))
    assert "no images found" in message
    assert "2 a pickle, which is never loaded" in message


# Labels


def test_a_label_column_is_the_field_of_the_json_file_and_nothing_else(tmp_path):
    path = write_tar(tmp_path / "x.tar", labelled(fields=[{"kind": 1 - row % 2} for row in range(4)]))
    assert opened(path).labels.tolist() == [0, 1, 0, 1]
    assert opened(path, columns=Columns(label="kind")).labels.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (labelled(), "sample '0' of {} has no .json file with the field 'kind' of --label-column"),
        (labelled(fields=[{"other": 0}] * 4), "no number or text called kind"),
        (labelled(fields=[1] * 4), "no number or text called kind"),
    ],
)
def test_a_label_column_that_is_not_there_is_refused(tmp_path, files, message):
    path = write_tar(tmp_path / "x.tar", files)
    assert message.format(path) in refusal(path, classes=NAMES, columns=Columns(label="kind"))


def test_samples_whose_json_file_has_another_label_are_counted_in_a_warning(tmp_path):
    fields = [{"label": 0}, {"label": "1"}, {"label": 1.0}, {"target": False}]
    source = opened(write_tar(tmp_path / "x.tar", labelled(fields=fields)))
    assert source.labels.tolist() == [0, 1, 0, 1]
    (note,) = source.notes
    assert "2 of 4 samples, such as '2', have another one in .json" in note
    assert "--label-column" in note


@pytest.mark.parametrize(
    "fields",
    [
        [{"label": row % 2} for row in range(4)],
        [{"label": "cat"}] * 4,  # a name of what .cls has as a number
        [{"url": "x"}] * 4,
        [[1]] * 4,
        ["x" * 100_000] * 4,
    ],
)
def test_no_warning_comes_of_a_json_file_without_another_label(tmp_path, fields):
    assert opened(write_tar(tmp_path / "x.tar", labelled(fields=fields))).notes == ()


# Endings of images


def test_an_ending_that_no_image_has_is_refused_with_those_that_are_there(tmp_path):
    path = write_tar(tmp_path / "x.tar", labelled() | {"9.jpg": picture(9, "JPEG"), "9.cls": b"0"})
    message = refusal(path, classes=NAMES, columns=Columns(image="pgn"))
    assert "lacks images with the ending 'pgn': it has jpg, png; give one of them" in message
    assert len(opened(path, columns=Columns(image="jpg"))) == 5


def test_the_ending_that_is_asked_for_is_taken_where_there_are_several(tmp_path):
    files = {}
    for row in range(2):
        files |= {f"{row}.input.png": picture(row), f"{row}.mask.png": picture(9), f"{row}.cls": b"%d" % row}
    source = opened(write_tar(tmp_path / "x.tar", files), columns=Columns(image="input.png"))
    assert list(source.read(range(2))) == [picture(0), picture(1)]
