"""data: Parquet in the Hugging Face layout, one file or many shards."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipguard.data import ImageSource
from clipguard.errors import ClipguardError
from clipguard.safety.limits import Limits

SHARED = Path(__file__).parents[2] / "shared" / "data"
NAMES = ("cat", "dog", "frog")


def png(shade: int, size: tuple[int, int] = (5, 4)) -> bytes:
    """Return a small one-coloured PNG."""
    file = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


def write_parquet(path, labels, *, names=NAMES, paths=None, images=None, group=3):
    """Write rows in the Hugging Face layout."""
    images = [png(10 * i) for i in range(len(labels))] if images is None else images
    paths = [f"{i:03}.png" for i in range(len(labels))] if paths is None else paths
    rows = [{"bytes": b, "path": p} for b, p in zip(images, paths, strict=True)]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"image": pa.array(rows, kind), "label": pa.array(labels, pa.int64())})
    if names is not None:
        info = {"info": {"features": {"label": {"names": list(names), "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, path, row_group_size=group)
    return path


def refusal(what, **options) -> str:
    """Return the one line with which `what` is refused."""
    with pytest.raises(ClipguardError) as caught:
        ImageSource.open(what, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_parquet_gives_names_labels_ids_and_bytes(tmp_path):
    labels = [0, 2, 1, 1, 0, 2, 2]
    source = ImageSource.open(write_parquet(tmp_path / "x.parquet", labels))
    assert source.kind == "parquet"
    assert source.class_names == NAMES
    assert source.labels.tolist() == labels
    assert source.ids[:2] == ("000.png", "001.png")
    assert list(source.read(range(7))) == [png(10 * i) for i in range(7)]


def test_rows_keep_a_range_and_may_leave_labels_unused(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", [0, 2, 1, 1, 0, 2, 2])
    source = ImageSource.open(path, rows=(2, 5))
    assert source.labels.tolist() == [1, 1, 0]
    assert source.ids == ("002.png", "003.png", "004.png")
    assert source.empty_classes == ("frog",)
    assert list(source.read(range(1, 3))) == [png(30), png(40)]


@pytest.mark.parametrize("rows", [(0, 8), (-1, 3), (3, 3), (5, 2)])
def test_rows_that_are_not_there_are_refused(tmp_path, rows):
    path = write_parquet(tmp_path / "x.parquet", [0, 2, 1, 1, 0, 2, 2])
    assert "has 7 rows" in refusal(path, rows=rows)


def test_shards_of_one_split_are_one_source_with_ids_by_shard_when_paths_repeat(tmp_path):
    write_parquet(tmp_path / "train-00001-of-00002.parquet", [1, 1], images=[b"c", b"d"])
    write_parquet(tmp_path / "train-00000-of-00002.parquet", [0, 2], images=[b"a", b"b"])
    source = ImageSource.open(tmp_path)
    assert source.labels.tolist() == [0, 2, 1, 1]
    assert list(source.read(range(4))) == [b"a", b"b", b"c", b"d"]
    assert source.ids[2] == "train-00001-of-00002.parquet:0"


def test_a_folder_with_one_parquet_file_is_that_file(tmp_path):
    write_parquet(tmp_path / "anything.parquet", [0, 1])
    assert len(ImageSource.open(tmp_path)) == 2


@pytest.mark.parametrize(
    "names",
    [
        ("train.parquet", "test.parquet"),
        ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
        ("train-00000-of-00002.parquet", "train.parquet"),
        ("train-00000-of-00002.parquet", "train-00000-of-00003.parquet"),
    ],
)
def test_splits_in_one_folder_are_never_mixed(tmp_path, names):
    for name in names:
        write_parquet(tmp_path / name, [0, 1])
    message = refusal(tmp_path)
    assert all(name in message for name in names)


def test_shards_that_name_classes_differently_are_refused(tmp_path):
    write_parquet(tmp_path / "train-0-of-2.parquet", [0, 1])
    write_parquet(tmp_path / "train-1-of-2.parquet", [0, 1], names=("dog", "cat", "frog"))
    assert "differently" in refusal(tmp_path)


def test_labels_outside_the_names_are_counted_and_the_first_is_named(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", [0, 1, 3, -1])
    message = refusal(path)
    assert "2 labels" in message
    assert "3 of '002.png'" in message


def test_null_labels_are_refused_with_their_row(tmp_path):
    assert "null labels, the first in row 1" in refusal(write_parquet(tmp_path / "x.parquet", [0, None, 1]))


def test_a_file_that_is_no_parquet_is_refused(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 but no more")
    assert "cannot be read as Parquet" in refusal(tmp_path / "x.parquet")


def test_a_parquet_file_without_rows_is_refused(tmp_path):
    assert "no images found" in refusal(write_parquet(tmp_path / "x.parquet", []))


IMAGE = pa.array([{"bytes": b"a", "path": None}] * 2, pa.struct({"bytes": pa.binary(), "path": pa.string()}))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"scan": IMAGE, "label": [0, 1]}, "lacks the column 'image'"),
        ({"image": IMAGE, "y": [0, 1]}, "lacks the column 'label'"),
        ({"image": ["a", "b"], "label": [0, 1]}, "paths, such as 'a'"),
        ({"image": [{"path": "a"}] * 2, "label": [0, 1]}, "'image'"),
        ({"image": [{"bytes": "text"}] * 2, "label": [0, 1]}, "'image'"),
        ({"image": IMAGE, "label": [[0], [1]]}, "'label'"),
        ({"image": IMAGE, "label": [0.5, 1.0]}, "one integer a row"),
    ],
)
def test_other_columns_are_refused_by_name(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    assert message in refusal(tmp_path / "x.parquet", classes=NAMES)


@pytest.mark.parametrize(
    ("columns", "taken"),
    [
        (("img", "label"), [2, 0, 1]),
        (("img", "fine_label", "coarse_label"), [2, 0, 1]),
        (("image", "labels"), [2, 0, 1]),
        (("image", "label", "fine_label"), [2, 0, 1]),
    ],
)
def test_the_columns_may_have_the_other_names_that_the_hub_has_for_them(tmp_path, columns, taken):
    write_parquet(tmp_path / "usual.parquet", taken)
    usual = pq.read_table(tmp_path / "usual.parquet")
    parts = [usual.column("image"), usual.column("label"), pa.array([0, 0, 0])]
    names = {"info": {"features": {columns[1]: {"names": list(NAMES)}}}}
    table = pa.table(dict(zip(columns, parts, strict=False)))
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)}), tmp_path / "x.parquet")
    source = ImageSource.open(tmp_path / "x.parquet")
    assert source.class_names == NAMES
    assert source.labels.tolist() == taken
    assert list(source.read(range(3))) == list(ImageSource.open(tmp_path / "usual.parquet").read(range(3)))


@pytest.mark.parametrize("metadata", ["{", "[]", '{"info": {"features": {"label": {"names": [1, 2]}}}}'])
def test_metadata_that_holds_no_names_counts_as_none(tmp_path, metadata):
    table = pa.table({"image": IMAGE, "label": [0, 1]}).replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, tmp_path / "x.parquet")
    assert "give classes" in refusal(tmp_path / "x.parquet")


def test_a_null_image_gives_no_bytes_and_its_path_is_not_followed(tmp_path):
    (tmp_path / "secret.png").write_bytes(png(1))
    here = str(tmp_path / "secret.png")
    path = write_parquet(tmp_path / "x.parquet", [0, 1, 1], images=[b"a", None, b"c"], paths=["a", here, "c"])
    assert list(ImageSource.open(path).read(range(3))) == [b"a", b"", b"c"]


def claiming_nulls(path, images):
    """Write one row group whose footer claims that all of its images' bytes are null, whatever they are."""
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = [{"bytes": image, "path": f"{row}.png"} for row, image in enumerate(images)]
    table = pa.table({"image": pa.array(rows, kind), "label": [row % 2 for row in range(len(rows))]})
    pq.write_table(table, path, write_statistics=["image.bytes"])
    content = bytearray(path.read_bytes())
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    # The field `null_count` of the statistics, a number of Thrift's compact protocol.
    truth = bytes([0x36, 2 * sum(image is None for image in images)])
    assert content.count(truth, footer) == 1
    content[content.index(truth, footer) + 1] = 2 * len(images)
    path.write_bytes(content)
    statistics = pq.ParquetFile(path).metadata.row_group(0).column(0).statistics
    assert statistics.null_count == len(images)
    return path


@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize("last", [png(3), None])
def test_bytes_that_the_footer_hides_are_read_and_no_path_beside_them(tmp_path, isolated, last):
    images = [None, png(1), png(2), last]
    for row in range(4):
        (tmp_path / f"{row}.png").write_bytes(png(200 + row))
    source = ImageSource.open(
        claiming_nulls(tmp_path / "x.parquet", images), classes=["a", "b"], limits=Limits(isolated=isolated)
    )
    assert list(source.read(range(4))) == [image or b"" for image in images]


def test_bytes_that_are_null_in_truth_leave_the_word_to_the_paths(tmp_path):
    for row in range(300):
        (tmp_path / f"{row}.png").write_bytes(png(row % 256))
    paths = [f"{row}.png" for row in range(300)]
    write_parquet(tmp_path / "x.parquet", [0, 1] * 150, paths=paths, images=[None] * 300, group=200)
    source = ImageSource.open(tmp_path / "x.parquet")
    assert list(source.read(np.array([0, 299]))) == [png(0), png(299 % 256)]


def test_an_image_struct_without_paths_gets_ids_by_row(tmp_path):
    image = pa.array([{"bytes": b"a"}, {"bytes": b"b"}], pa.struct({"bytes": pa.binary()}))
    pq.write_table(pa.table({"image": image, "label": pa.array([0, 1], pa.int8())}), tmp_path / "x.parquet")
    assert ImageSource.open(tmp_path / "x.parquet", classes=NAMES).ids == ("x.parquet:0", "x.parquet:1")


@given(
    st.lists(st.integers(0, 400), min_size=1, max_size=4),
    st.integers(1, 300),
    st.sets(st.integers(0, 1600), min_size=1, max_size=30),
    st.data(),
)
def test_any_rows_come_back_in_order_whatever_shards_groups_and_sub_sets(
    tmp_path_factory, lengths, group, chosen, data
):
    folder = tmp_path_factory.mktemp("shards")
    lengths[0] += 2
    total = sum(lengths)
    start = 0
    for number, length in enumerate(lengths):
        labels = [row % 3 for row in range(start, start + length)]
        images = [b"%d" % row for row in range(start, start + length)]
        name = f"t-{number}-of-{len(lengths)}.parquet"
        write_parquet(folder / name, labels, images=images, group=group)
        start += length
    source = ImageSource.open(folder)
    part = source.take(np.array(sorted({row % total for row in chosen})))
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, len(part) - 1)))), np.int64)
    whole = np.array(sorted({row % total for row in chosen}))[rows]
    assert list(part.read(rows)) == [b"%d" % row for row in whole]
    assert part.labels[rows].tolist() == [row % 3 for row in whole]
    assert [part.ids[row] for row in rows] == [source.ids[row] for row in whole]


def test_a_source_that_names_nothing_asks_for_classes(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", [0, 1, 0], names=None)
    assert "give classes" in refusal(path)
    assert ImageSource.open(path, classes=NAMES).empty_classes == ("frog",)


def test_each_part_of_a_source_changes_its_fingerprint(tmp_path):
    first = write_parquet(tmp_path / "a.parquet", [0, 1, 2])
    same = ImageSource.open(write_parquet(tmp_path / "b.parquet", [0, 1, 2], group=1)).fingerprint
    whole = ImageSource.open(first)
    others = [
        ImageSource.open(first, classes=("cat", "dog", "toad")).fingerprint,
        ImageSource.open(write_parquet(tmp_path / "c.parquet", [0, 2, 1])).fingerprint,
        ImageSource.open(write_parquet(tmp_path / "d.parquet", [0, 1, 2], paths=["a", "b", "c"])).fingerprint,
        ImageSource.open(
            write_parquet(tmp_path / "e.parquet", [0, 1, 2], images=[b"", b"a", b"b"])
        ).fingerprint,
        ImageSource.open(
            write_parquet(tmp_path / "f.parquet", [0, 1, 2], images=[b"a", b"", b"b"])
        ).fingerprint,
        whole.take(range(2)).fingerprint,
    ]
    assert whole.fingerprint == same
    assert len({same, *others}) == 7


def test_a_file_of_one_row_group_is_never_in_memory_as_a_whole(tmp_path):
    draw = np.random.default_rng(0)
    rows = [{"bytes": draw.bytes(20_000), "path": None} for _ in range(1500)]
    image = pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    table = pa.table({"image": image, "label": pa.array(range(1500)).cast(pa.int64())})
    pq.write_table(table, tmp_path / "x.parquet", use_dictionary=False, write_batch_size=16)
    del image, table
    # Right here, where its memory can be measured.
    limits, names = Limits(isolated=False), [str(label) for label in range(1500)]
    source = ImageSource.open(tmp_path / "x.parquet", classes=names, limits=limits)
    before = pa.total_allocated_bytes()
    most = max(pa.total_allocated_bytes() for _ in source.read(range(1500))) - before
    assert 0 < most < 15_000_000


@pytest.mark.parametrize(("name", "rows"), [("cifar10", 50_000), ("imagenette-80", 9_469)])
def test_the_shared_sets_open_with_all_their_rows(name, rows):
    if not (SHARED / name).exists():
        pytest.skip(f"shared data set {name} is missing")
    assert "test.parquet, train.parquet" in refusal(SHARED / name)
    source = ImageSource.open(SHARED / name / "train.parquet")
    assert len(source) == len(set(source.ids)) == rows
    assert len(source.class_names) == 10
    assert source.empty_classes == ()


def test_shards_that_hold_more_rows_together_than_the_limit_are_refused(tmp_path):
    for number in range(2):
        write_parquet(tmp_path / f"train-0000{number}-of-00002.parquet", [0, 1, 2])
    assert len(ImageSource.open(tmp_path, limits=Limits(members=6))) == 6
    assert "goes above the limit of 5 rows" in refusal(tmp_path, limits=Limits(members=5))
