"""Parquet, tar and npz as people have them: one rule of labels for all, paths, plain bytes, shards, dots."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipguard.data import Columns, Failed, ImageSource
from clipguard.errors import ClipguardError
from tar_files import write_tar
from test_sources import png, refusal, write_folder
from tiny_data import pictures

IMAGES = [png(shade) for shade in range(4)]
TEXTS = ["dog", "cat", "dog", "cat"]


def parquet(path, labels, images=None, name="label"):
    """Write a table with plain bytes as images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": pa.array(images or IMAGES), name: labels}), path)
    return path


def npz(path, labels, name="label"):
    """Write arrays, labels under another name than usual."""
    np.savez(path, images=pictures(4), **{name: np.array(labels)})
    return path


def tar(path, labels, name="label"):
    """Write a shard whose labels are fields of .json files."""
    files = {}
    for row, label in enumerate(labels):
        files[f"{row}.png"] = IMAGES[row]
        files[f"{row}.json"] = json.dumps({name: label}).encode()
    return write_tar(path, files)


def metadata(path, labels, name="label"):
    """Write an image folder with a table."""
    write_folder(path, [f"{row}.png" for row in range(4)])
    rows = [f"{row}.png,{label}" for row, label in enumerate(labels)]
    (path / "metadata.csv").write_text("\n".join([f"file_name,{name}", *rows]))
    return path


def datasets_object(path, labels, name="label"):
    """Return a `datasets.Dataset`."""
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"image": [{"bytes": i, "path": None} for i in IMAGES], name: labels})
    return data.cast_column("image", datasets.Image())


def arrays(path, labels, name="label"):
    """Return a mapping of arrays."""
    return {"image": pictures(4), name: labels}


DOORS = (parquet, npz, tar, metadata, datasets_object, arrays)


def opened(door, tmp_path, labels, name="label", **options):
    suffix = {parquet: ".parquet", npz: ".npz", tar: ".tar"}.get(door, "")
    made = door(tmp_path / f"x{suffix}", labels, name=name) if door else None
    return ImageSource.open(made, **options)


# 14: labels by one rule


@pytest.mark.parametrize("door", DOORS)
def test_texts_are_class_names_in_every_door(door, tmp_path):
    source = opened(door, tmp_path, TEXTS)
    assert [source.class_names[label] for label in source.labels] == TEXTS
    assert source.class_names == ("cat", "dog")


@pytest.mark.parametrize("door", DOORS)
def test_whole_numbers_in_any_form_are_indices_in_every_door(door, tmp_path):
    names = ["a", "b", "c"]
    for labels in ([2, 0, 2, 0], [2.0, 0.0, 2.0, 0.0], ["2", "0", "2", "0"]):
        place = tmp_path / str(len(str(labels)))
        place.mkdir(exist_ok=True)
        assert opened(door, place, labels, classes=names).labels.tolist() == [2, 0, 2, 0]


@pytest.mark.parametrize("door", [parquet, npz, tar, datasets_object, arrays])
def test_truth_values_are_indices(door, tmp_path):
    source = opened(door, tmp_path, [True, False, True, False], classes=["no", "yes"])
    assert source.labels.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", ["target", "class", "labels"])
def test_usual_names_of_the_labels_are_understood_in_every_door(door, name, tmp_path):
    assert len(opened(door, tmp_path, TEXTS, name=name)) == 4


@pytest.mark.parametrize("door", DOORS)
def test_any_other_column_can_be_named(door, tmp_path):
    columns = Columns(label="kind")
    assert opened(door, tmp_path, TEXTS, name="kind", columns=columns).class_names == ("cat", "dog")


@pytest.mark.parametrize("door", [door for door in DOORS if door is not metadata])
def test_fractions_are_refused_and_those_of_a_text_are_names(door, tmp_path):
    with pytest.raises(ClipguardError, match="one integer a row"):
        opened(door, tmp_path, [0.5, 1.0, 0.5, 1.0], classes=["a", "b", "c"])


def test_a_column_of_labels_and_categories_of_arrow_are_read(tmp_path):
    column = ImageSource.open((pictures(4), np.array([[0], [1], [0], [1]])), classes=["a", "b"])
    assert column.labels.tolist() == [0, 1, 0, 1]
    file = parquet(tmp_path / "x.parquet", pa.array(TEXTS).dictionary_encode())
    assert ImageSource.open(file).class_names == ("cat", "dog")


def test_several_columns_that_may_be_the_labels_are_asked_for(tmp_path):
    table = pa.table({"image": IMAGES, "class": TEXTS, "target": [0, 1, 0, 1]})
    pq.write_table(table, tmp_path / "x.parquet")
    assert "choose one with --label-column" in refusal(tmp_path / "x.parquet")
    source = ImageSource.open(tmp_path / "x.parquet", columns=Columns(label="class"))
    assert source.class_names == ("cat", "dog")


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path):
    file = parquet(tmp_path / "x.parquet", TEXTS)
    assert "lacks the column 'kind' of --label-column: it has label" in refusal(
        file, columns=Columns(label="kind")
    )


def test_texts_of_several_shards_are_numbered_together(tmp_path):
    for number, labels in enumerate((["dog", "dog", "emu", "emu"], ["ant", "dog", "ant", "dog"])):
        parquet(tmp_path / f"train-0000{number}-of-00002.parquet", labels)
    source = ImageSource.open(tmp_path)
    assert source.class_names == ("ant", "dog", "emu")
    assert source.labels.tolist() == [1, 1, 2, 2, 0, 1, 0, 1]


# 13: images of a table


def test_plain_bytes_are_images(tmp_path):
    assert list(ImageSource.open(parquet(tmp_path / "x.parquet", TEXTS)).read(range(4))) == IMAGES


@pytest.mark.parametrize("form", ["text", "struct"])
def test_paths_inside_the_folder_are_read_and_others_are_not(tmp_path, form):
    write_folder(tmp_path, ["set/a/0.png", "set/a/1.png", "out.png"])
    paths = ["a/0.png", "a/1.png", "../out.png", str(tmp_path / "out.png")]
    cells = pa.array(paths)
    if form == "struct":
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        cells = pa.array([{"bytes": None, "path": path} for path in paths], kind)
    pq.write_table(pa.table({"image": cells, "label": TEXTS}), tmp_path / "set/x.parquet")
    source = ImageSource.open(tmp_path / "set/x.parquet")
    items = list(source.read(range(4)))
    assert items[:2] == [png(0), png(1)]
    assert items[2:] == [Failed("a path that leads out of the folder")] * 2
    before = source.key
    (tmp_path / "set/a/0.png").write_bytes(png(9) + b"more")
    assert ImageSource.open(tmp_path / "set/x.parquet").key != before


def test_paths_of_another_machine_are_refused_with_the_way_out(tmp_path):
    table = pa.table({"image": [f"/home/somebody/{row}.png" for row in range(4)], "label": TEXTS})
    pq.write_table(table, tmp_path / "x.parquet")
    message = refusal(tmp_path / "x.parquet")
    assert "no such file lies in" in message
    assert "write their bytes into the table" in message


def test_a_clone_of_the_hub_is_opened_by_its_only_split(tmp_path):
    parquet(tmp_path / "data/train-00000-of-00001.parquet", TEXTS)
    (tmp_path / "README.md").write_text("x")
    (tmp_path / ".git").mkdir()
    assert len(ImageSource.open(tmp_path)) == 4
    parquet(tmp_path / "data/test-00000-of-00001.parquet", TEXTS)
    assert f"'{tmp_path}/data/test*.parquet' or '{tmp_path}/data/train*.parquet'" in refusal(tmp_path)
    assert len(ImageSource.open(tmp_path / "data/train*.parquet")) == 4


# 15: webdataset's names


def test_input_and_output_of_one_key_are_one_sample(tmp_path):
    files = {}
    for row in range(4):
        files |= {f"{row}.input.png": IMAGES[row], f"{row}.output.cls": str(row % 2).encode()}
    source = ImageSource.open(write_tar(tmp_path / "x.tar", files), classes=["a", "b"])
    assert source.ids == ("0", "1", "2", "3")
    assert list(source.read(range(4))) == IMAGES


def test_dots_in_keys_are_explained(tmp_path):
    files = {"v1.0.png": IMAGES[0], "v1.0.cls": b"0", "v1.1.png": IMAGES[1], "v1.1.cls": b"1"}
    message = refusal(write_tar(tmp_path / "x.tar", files), classes=["a", "b"])
    assert "a key ends at the first dot" in message
    assert "rename them" in message


def test_an_archive_of_class_folders_says_to_unpack_it(tmp_path):
    files = {"set/cat/1.png": IMAGES[0], "set/dog/1.png": IMAGES[1]}
    assert "unpack the archive and open the folder" in refusal(write_tar(tmp_path / "x.tar", files))


def test_members_that_are_no_samples_are_counted(tmp_path):
    files = {"0.png": IMAGES[0], "0.cls": b"cat", "1.png": IMAGES[1], "1.cls": b"dog", "notes.txt": b"x"}
    source = ImageSource.open(write_tar(tmp_path / "x.tar", files | {"._2.png": b"x"}))
    assert source.skipped == {".txt, no image": 1, "hidden": 1}


# Groups


@pytest.mark.parametrize("door", [parquet, npz, tar])
def test_groups_are_read_from_their_column(door, tmp_path):
    if door is parquet:
        table = pa.table({"image": IMAGES, "label": TEXTS, "video": ["x", "y", "x", None]})
        pq.write_table(table, file := tmp_path / "x.parquet")
    elif door is npz:
        file = tmp_path / "x.npz"
        np.savez(file, images=pictures(4), labels=TEXTS, video=np.array(["x", "y", "x", ""]))
    else:
        values = zip(TEXTS, ["x", "y", "x", None], strict=True)
        in_turns = [f"{row}.{ending}" for row in range(4) for ending in ("json", "png")]
        made = {f"{r}.json": json.dumps({"label": t, "video": v}).encode() for r, (t, v) in enumerate(values)}
        files = {name: made[name] if name in made else IMAGES[int(name[0])] for name in in_turns}
        file = write_tar(tmp_path / "x.tar", files)
    source = ImageSource.open(file, columns=Columns(group="video"))
    assert source.groups.tolist() == [0, 1, 0, 2]
    assert source.take(np.array([1, 2])).groups.tolist() == [1, 0]
    assert source.key != ImageSource.open(file).key
