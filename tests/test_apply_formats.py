"""`clipguard apply`: what is copied can be opened again, has the kept samples alone, and fits into memory."""

import json
import shutil
import tarfile
import tracemalloc
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipguard.data import Columns, ImageSource
from clipguard.data.finding import listing_of
from clipguard.data.tar import list_tar
from clipguard.errors import ClipguardError
from clipguard.outputs.clean_copy import parquet, tar
from clipguard.outputs.clean_copy.files import copy_folder
from clipguard.outputs.clean_copy.tar import copy_tar
from clipguard.safety.limits import Limits
from tar_files import picture, write_tar
from test_apply import KEPT, N, encoded, folder, run, run_of  # noqa: F401  # fixtures: a scanned folder
from tiny_data import pictures, tree

CLASSES = ["cat", "dog"]


# Tar


def listing_of_tar(path):
    """Return what the reader of an archive lists."""
    return list_tar([path], path, Limits())


def copied(listing, rows, tmp_path):
    """Return the names in the copy of an archive."""
    part = tmp_path / "part"
    part.mkdir()
    copy_tar(listing, np.array(rows), part, Limits())
    with tarfile.open(part / "x.tar") as archive:
        return archive.getnames()


TWO_RUNS = {
    "a.png": picture(1),
    "a.json": b'{"label": 0}',
    "z.pkl": b"\x80\x04.",
    "a.jpg": picture(2, "JPEG"),
    "a.cls": b"1",
}


@pytest.mark.parametrize(("kept", "names"), [(0, ["a.png", "a.json"]), (1, ["a.jpg", "a.cls"])])
def test_a_sample_behind_a_refused_file_does_not_stay_with_the_one_before(tmp_path, kept, names):
    listing = listing_of_tar(write_tar(tmp_path / "x.tar", TWO_RUNS))
    assert len(listing.ids) == 2
    assert copied(listing, [kept], tmp_path) == names


@pytest.mark.parametrize("between", [{"z.pkl": b"x"}, {"b.png": picture(3), "b.cls": b"1"}])
def test_two_samples_that_would_be_one_in_the_copy_are_refused(tmp_path, between):
    files = {
        "a.png": picture(1),
        "a.cls": b"0",
        **between,
        "a.jpg": picture(2, "JPEG"),
        "a.json": b'{"label": 1}',
    }
    listing = listing_of_tar(write_tar(tmp_path / "x.tar", files))
    with pytest.raises(ClipguardError, match="two samples called 'a', which would be one in the copy"):
        copied(listing, [0, len(listing.ids) - 1], tmp_path)


def test_a_large_file_beside_an_image_is_copied_piece_by_piece(tmp_path):
    files = {"a.png": picture(1), "a.cls": b"0", "a.npy": bytes(48 << 20), "b.png": picture(2), "b.cls": b"1"}
    listing = listing_of_tar(write_tar(tmp_path / "x.tar", files))
    tracemalloc.start()
    try:
        names = copied(listing, [0], tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert names == ["a.png", "a.cls", "a.npy"]
    assert (tmp_path / "part/x.tar").stat().st_size > 48 << 20
    assert peak < 8 << 20


def test_an_archive_that_is_cut_short_meanwhile_is_one_line(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "x.tar", {"a.png": picture(1), "a.cls": b"0"})
    listing = listing_of_tar(path)
    members = list(tar._members_of(path, set(listing.reader.places[:, 1].tolist()), Limits()))
    path.write_bytes(path.read_bytes()[: members[0].offset + 3])
    monkeypatch.setattr(tar, "_members_of", lambda *_: iter(members))
    (tmp_path / "part").mkdir()
    with pytest.raises(ClipguardError, match="was cut short meanwhile"):
        copy_tar(listing, np.array([0]), tmp_path / "part", Limits())


# Parquet


def table_of_paths(place, form, shards=(5,), label="label"):
    """Write images below a folder, and tables that name them."""
    names = [f"{('cat', 'dog')[row % 2]}/{row:02d}.png" for row in range(N)]
    for name, pixels in zip(names, pictures(N), strict=True):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(encoded(pixels))
    cells = pa.array([f"./{name}" if row == 0 else name for row, name in enumerate(names)])
    if form == "struct":
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        cells = pa.array([{"bytes": None, "path": name} for name in names], kind)
    labels = [CLASSES[row % 2] for row in range(N)]
    table = pa.table({"image": cells, label: labels, "note": list(range(N))})
    cuts = [0, *shards, N]
    for number, (start, stop) in enumerate(pairwise(cuts)):
        pq.write_table(table[start:stop], place / f"train-{number:05d}-of-{len(cuts) - 1:05d}.parquet")
    return names


@pytest.mark.parametrize("form", ["text", "struct"])
# Of the second shards, all rows are left out.
@pytest.mark.parametrize("shards", [(5,), (4, 6)])
def test_a_table_of_paths_is_copied_with_the_files_of_the_kept_rows(clipguard, tmp_path, form, shards):
    names = table_of_paths(tmp_path / "data", form, shards)
    (tmp_path / "data" / "cat" / "unnamed.png").write_bytes(b"of no row")
    made = run_of(tmp_path / "run", tmp_path / "data")
    assert clipguard("apply", made, tmp_path / "data", "-o", tmp_path / "clean").code == 0
    images = {name for name in tree(tmp_path / "clean") if name.endswith(".png")}
    assert images == {names[row] for row in KEPT}
    again = ImageSource.open(tmp_path / "clean")
    source = ImageSource.open(tmp_path / "data")
    assert list(again.ids) == [source.ids[row] for row in KEPT]
    assert list(again.read(range(len(KEPT)))) == list(source.read(np.array(KEPT)))
    assert [again.class_names[label] for label in again.labels] == [CLASSES[row % 2] for row in KEPT]


def test_an_image_with_the_name_of_the_table_is_refused(clipguard, tmp_path, monkeypatch):
    table_of_paths(tmp_path / "data", "text", ())
    made = run_of(tmp_path / "run", tmp_path / "data")
    copy_rows = parquet._copy_rows

    def with_another(file, rows, target):
        copy_rows(file, rows, target)
        (target.parent / "cat").mkdir()
        (target.parent / "cat" / "00.png").write_bytes(b"another")

    monkeypatch.setattr(parquet, "_copy_rows", with_another)
    ran = clipguard("apply", made, tmp_path / "data", "-o", tmp_path / "clean")
    assert (ran.code, ran.out) == (2, "")
    assert "has the name of another file in the copy" in ran.err
    assert not (tmp_path / "clean").exists()


# Tables of image folders


def test_a_row_stays_by_its_own_image_and_not_by_another_cell(clipguard, tmp_path, folder, run):  # noqa: F811
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    rows = [f"{name},{files[0]}" for name in files]
    (folder / "metadata.csv").write_text("\n".join(["file_name,like", *rows]))
    records = [json.dumps({"like": files[0], "file_name": name}) for name in files]
    (folder / "metadata.jsonl").write_text("\n".join(records))
    assert clipguard("apply", run, folder, "-o", tmp_path / "clean").code == 0
    table = (tmp_path / "clean" / "metadata.csv").read_text().splitlines()
    assert table == ["file_name,like", *(rows[row] for row in KEPT)]
    lines = (tmp_path / "clean" / "metadata.jsonl").read_text().splitlines()
    assert lines == [records[row] for row in KEPT]


def test_the_column_that_was_read_decides_which_rows_stay(clipguard, tmp_path):
    files = [f"{row:02d}.png" for row in range(N)]
    (tmp_path / "data").mkdir()
    for name, pixels in zip(files, pictures(N), strict=True):
        (tmp_path / "data" / name).write_bytes(encoded(pixels))
    # The usual column names other images than the one that is asked for.
    lines = [f"{files[N - 1 - row]},{files[row]},{CLASSES[row % 2]}" for row in range(N)]
    table = tmp_path / "data" / "metadata.csv"
    table.write_text("\n".join(["file_name,mine,label", *lines]))
    listing = listing_of(tmp_path / "data", Limits(), Columns(image="mine"))
    part = tmp_path / "part"
    part.mkdir()
    copy_folder(listing, np.array(KEPT), part, Limits())
    assert (part / "metadata.csv").read_text().splitlines()[1:] == [lines[row] for row in KEPT]


ODD = ["a\u2028b", "a\u0085b", "a\rb", 'a "b"', " a", "\ud800"]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_table_with_odd_texts_can_be_opened_again(clipguard, tmp_path, folder, kind):  # noqa: F811
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    labels = [name.partition("/")[0] for name in files]
    notes = [ODD[row % len(ODD)] for row in range(N)]
    if kind == "csv":
        notes = [note.replace("\ud800", "x").replace('"', '""') for note in notes]
        rows = [f'{name},"{note}",{label}' for name, note, label in zip(files, notes, labels, strict=True)]
        text = "\n".join(["file_name,note,label", *rows])
    else:
        records = [
            {"file_name": name, "note": note, "label": label, "large": 10**400, "n": float("nan")}
            for name, note, label in zip(files, notes, labels, strict=True)
        ]
        # Only what UTF-8 cannot hold is escaped.
        text = "\n".join(json.dumps(one, ensure_ascii="\ud800" in one["note"]) for one in records)
    with (folder / f"metadata.{kind}").open("w", encoding="utf-8", newline="") as file:
        file.write(text)
    made = run_of(tmp_path / "run", folder)
    assert clipguard("apply", made, folder, "-o", tmp_path / "clean").code == 0
    again, source = ImageSource.open(tmp_path / "clean"), ImageSource.open(folder)
    assert again.ids == tuple(source.ids[row] for row in KEPT)
    assert again.labels.tolist() == source.labels[KEPT].tolist()
    before = (folder / f"metadata.{kind}").read_bytes()
    after = (tmp_path / "clean" / f"metadata.{kind}").read_bytes()
    assert all(line in before.split(b"\n") for line in after.split(b"\n"))


def test_a_second_table_that_names_no_images_is_refused(clipguard, tmp_path, folder, run):  # noqa: F811
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    (folder / "metadata.csv").write_text("\n".join(["file_name,note", *(f"{name},x" for name in files)]))
    shutil.copy(folder / "metadata.csv", tmp_path / "kept.csv")
    (folder / "metadata.jsonl").write_text('{"about": "these images"}\n')
    ran = clipguard("apply", run, folder, "-o", tmp_path / "clean")
    assert (ran.code, ran.out) == (2, "")
    assert "metadata.jsonl lacks the column 'file_name'" in ran.err
    assert "move the file elsewhere" in ran.err
