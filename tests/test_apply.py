"""`clipguard apply`: a copy of the source without what was flagged, in its own format, all or nothing."""

import io
import json
import shutil
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipguard.data import ImageSource
from clipguard.data.source import contents_of
from clipguard.data.writer import write_parquet
from clipguard.runs import RunFolder, SourceInfo, write_json, write_table
from clipguard.runs.samples_table import in_table_order
from clipguard.types import image_set
from tar_files import write_tar
from tiny_data import image_folder, npz, pictures, tree

N, FLAGGED, ASIDE = 12, (1, 4, 5), (7,)
KEPT = [row for row in range(N) if row not in FLAGGED]


def run_of(path, source):
    """Write a run that has read all of the source, with flagged samples and one set aside."""
    opened = ImageSource.open(source, classes=["cat", "dog"])
    n = len(opened)
    info = SourceInfo(
        kind=opened.kind,
        location=opened.location,
        key=opened.key,
        n=n,
        class_names=opened.class_names,
    )
    RunFolder.open(path, info, {}, seed=0).retract("nothing")
    rows = np.arange(n)
    flagged, aside = np.isin(rows, FLAGGED), np.isin(rows, ASIDE)
    columns = {
        "row": rows,
        "id": np.array(opened.ids, object),
        "path": np.array(opened.paths, object),
        "sha256": np.array([contents_of(item).sha256.hex() for item in opened.read(rows)], object),
        "label": opened.labels,
        "given_label": np.array(opened.class_names, object)[opened.labels],
        "predicted_label": np.array(opened.class_names, object)[1 - opened.labels],
        "status": np.where(flagged, "flagged", np.where(aside, "set aside", "trusted")).astype(object),
        "reason": np.where(flagged, "trigger", np.where(aside, "uncertain", "")).astype(object),
        "poison_score": np.linspace(0, 1, n),
        "q_value": np.linspace(1, 0, n),
        "rank": rows[::-1] + 1,
        "trigger": flagged.astype(np.int64),
        **{name: np.linspace(0, 1, n) for name in ("guide_nll", "early_nll", "guide_rank", "early_rank")},
        "trigger_score": np.linspace(0, 1, n),
    }
    table, order = in_table_order(columns)
    write_table(path / "samples.parquet", table, order=order)
    return path


def encoded(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    return image_folder(tmp_path / "data", N)


@pytest.fixture
def run(tmp_path, folder):
    return run_of(tmp_path / "run", folder)


def test_a_folder_is_copied_without_the_flagged_files_and_stays_as_it_is(clipguard, tmp_path, folder, run):
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    before = tree(folder)
    ran = clipguard("apply", run, folder, "--out", tmp_path / "clean", "--json")
    assert ran.code == 0
    assert (ran.json["kept"], ran.json["dropped"], ran.json["not_scanned"]) == (9, {"flagged": 3}, 0)
    assert tree(folder) == before
    copied = tree(tmp_path / "clean")
    assert {name for name, content in copied.items() if content} == {files[row] for row in KEPT}
    assert all(content == before[name] for name, content in copied.items())
    assert not list(tmp_path.glob(".*"))


def test_a_tables_rows_are_copied_with_all_columns_and_metadata(clipguard, tmp_path):
    data = image_set(pictures(N), np.arange(N) % 2, ("cat", "dog"), tuple(f"i/{row}.png" for row in range(N)))
    write_parquet(data, tmp_path / "plain.parquet")
    table = pq.read_table(tmp_path / "plain.parquet")
    table = table.append_column("note", pa.array([{"by": f"person {row}"} for row in range(N)]))
    (tmp_path / "data").mkdir()
    # Two shards, the first of whose row groups ends inside a batch.
    pq.write_table(table[:5], tmp_path / "data" / "train-00000-of-00002.parquet", row_group_size=2)
    pq.write_table(table[5:], tmp_path / "data" / "train-00001-of-00002.parquet")
    run = run_of(tmp_path / "run", tmp_path / "data")
    assert clipguard("apply", run, tmp_path / "data", "-o", tmp_path / "clean").code == 0
    copied = [pq.read_table(file) for file in sorted((tmp_path / "clean").iterdir())]
    assert [part.num_rows for part in copied] == [3, 6]
    assert pa.concat_tables(copied).equals(table.take(KEPT))
    assert copied[0].schema.metadata == table.schema.metadata
    again = ImageSource.open(tmp_path / "clean")
    assert list(again.ids) == [f"i/{row}.png" for row in KEPT]
    assert again.class_names == ("cat", "dog")


def test_a_tars_samples_are_copied_with_all_their_plain_files(clipguard, tmp_path):
    images = pictures(N)
    for shard in range(2):
        files = {"readme.txt": b"of no sample"}
        for row in range(6 * shard, 6 * shard + 6):
            key = f"a/{row:03d}"
            files |= {f"{key}.png": encoded(images[row]), f"{key}.cls": b"%d" % (row % 2)}
            files |= {f"{key}.txt": b"caption", f"{key}.pkl": b"\x80\x04."}
        write_tar(tmp_path / f"data-{shard}.tar", files)
    source = tmp_path / "data-{0..1}.tar"
    run = run_of(tmp_path / "run", source)
    assert clipguard("apply", run, source, "-o", tmp_path / "clean").code == 0
    names = []
    for shard in range(2):
        with tarfile.open(tmp_path / "clean" / f"data-{shard}.tar") as archive:
            names += archive.getnames()
            assert archive.extractfile(names[-3]).read() == encoded(images[int(names[-3][2:5])])
    assert names == [f"a/{row:03d}.{ending}" for row in KEPT for ending in ("png", "cls", "txt")]
    again = ImageSource.open(tmp_path / "clean", classes=["cat", "dog"])
    assert again.labels.tolist() == [row % 2 for row in KEPT]


def test_an_npz_is_cut_in_every_array_of_one_entry_a_sample(clipguard, tmp_path):
    file = npz(tmp_path / "a.npz", np.arange(N) % 2)
    arrays = dict(np.load(file)) | {"weights": np.arange(N) / 2, "about": np.array("mine")}
    np.savez_compressed(file, **arrays)
    run = run_of(tmp_path / "run", file)
    assert clipguard("apply", run, file, "-o", tmp_path / "clean").code == 0
    copied = dict(np.load(tmp_path / "clean" / "a.npz"))
    assert copied.keys() == arrays.keys()
    for name in ("images", "labels", "weights"):
        assert np.array_equal(copied[name], arrays[name][KEPT])
    assert copied["class_names"].tolist() == ["cat", "dog"]
    assert copied["about"] == "mine"


def test_options_drop_what_is_set_aside_and_low_q_values_and_reviews_have_the_last_word(
    clipguard, tmp_path, folder, run
):
    table = pq.read_table(run / "samples.parquet").to_pylist()
    by_row = {row["row"]: row for row in table}

    def mark(row, decision, at):
        chosen = {name: by_row[row][name] for name in ("sha256", "id")}
        return {**chosen, "decision": decision, "by": "me", "reason": "looked", "at": at}

    marks = [
        mark(4, "keep", "2026-02-01T10:00:00Z"),
        mark(4, "drop", "2026-01-01T10:00:00+02:00"),  # earlier: it no longer counts
        mark(0, "drop", "2026-01-01T10:00:00"),
        {**mark(2, "drop", "2026-01-01T10:00:00Z"), "sha256": "0" * 64},  # another image of the name
    ]
    write_json(run / "reviews.json", {"schema_version": 1, "run": "x", "reviews": marks})
    arguments = ("--set-aside", "--q-value", "0.2", "-o", tmp_path / "clean", "--json")
    ran = clipguard("apply", run, folder, *arguments)
    value = ran.json
    assert value["dropped"] == {"flagged": 2, "set aside": 1, "q-value": 3, "review": 1}
    marks = {"keep": 1, "drop": 3, "kept_though_flagged": 1, "of_no_sample": 1}
    assert value["reviews"] == {"file": str(run / "reviews.json"), **marks}
    files = {name for name, content in tree(tmp_path / "clean").items() if content}
    assert files == {by_row[row]["id"] for row in (2, 3, 4, 6, 8)}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "cat" / "0004.png").write_bytes(b"other"), "is not what was scanned"),
        # Also one that is left out: the source is not the one that was scanned.
        (lambda folder: (folder / "cat" / "0002.png").write_bytes(b"other"), "is not what was scanned"),
        (lambda folder: (folder / "cat" / "0004.png").unlink(), "lacks 1 of 12 samples"),
    ],
)
def test_another_source_is_refused_and_nothing_is_written(clipguard, tmp_path, folder, run, damage, words):
    damage(folder)
    ran = clipguard("apply", run, folder, "-o", tmp_path / "clean")
    assert (ran.code, ran.out) == (2, "")
    assert words in ran.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "run"]


def test_what_came_after_the_scan_is_left_out_and_counted(clipguard, tmp_path, folder, run):
    shutil.copy(folder / "cat" / "0000.png", folder / "cat" / "0000a.png")
    ran = clipguard("apply", run, folder, "-o", tmp_path / "clean", "--json")
    assert (ran.json["kept"], ran.json["not_scanned"]) == (9, 1)
    assert not (tmp_path / "clean" / "cat" / "0000a.png").exists()


def test_a_source_that_changes_meanwhile_leaves_nothing(clipguard, tmp_path, folder, run, monkeypatch):
    from clipguard.outputs.clean_copy import copying

    def copier(*arguments):
        copy(*arguments)
        (folder / "dog" / "0001.png").write_bytes(b"longer than before" * 100)

    copy = copying.copy_folder
    monkeypatch.setattr(copying, "_COPIERS", {**copying._COPIERS, copying.FolderReader: copier})
    ran = clipguard("apply", run, folder, "-o", tmp_path / "clean")
    assert ran.code == 2
    assert "changed while it was being copied" in ran.err
    assert not (tmp_path / "clean").exists()
    assert not list(tmp_path.glob(".*"))


def test_the_copy_goes_into_no_used_folder_and_not_into_the_source(clipguard, tmp_path, folder, run):
    before = tree(tmp_path)
    for out in (run, folder / "clean", tmp_path):
        ran = clipguard("apply", run, folder, "-o", out)
        assert (ran.code, ran.out) == (2, "")
        assert "give" in ran.err
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[" * 100_000,
        '{"schema_version": 2, "run": "", "reviews": []}',
        '{"schema_version": 1, "run": "", "reviews": [{"decision": "burn"}]}',
        json.dumps({"schema_version": 1, "run": "", "reviews": [], "more": 1}),
    ],
)
def test_damaged_review_marks_are_one_line_and_nothing_is_written(clipguard, tmp_path, folder, run, text):
    (tmp_path / "marks.json").write_text(text)
    ran = clipguard("apply", run, folder, "-o", tmp_path / "clean", "--reviews", tmp_path / "marks.json")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert "review marks" in ran.err
    assert not (tmp_path / "clean").exists()


def test_a_class_that_loses_all_its_samples_is_told(clipguard, tmp_path, folder, run):
    marks = [
        {"sha256": row["sha256"], "id": row["id"], "decision": "drop"}
        | {"by": "me", "reason": "", "at": "2026-01-01T00:00:00Z"}
        for row in pq.read_table(run / "samples.parquet").to_pylist()
        if row["given_label"] == "dog"
    ]
    write_json(tmp_path / "marks.json", {"schema_version": 1, "run": "x", "reviews": marks})
    ran = clipguard("apply", run, folder, "-o", tmp_path / "clean", "--reviews", tmp_path / "marks.json")
    assert ran.code == 0
    assert "1 classes have no sample left: dog" in ran.err


def test_a_folders_tables_lose_the_rows_of_what_is_left_out(clipguard, tmp_path, folder, run):
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    lines = [f'./{name},"a ""note"", {row}"' for row, name in enumerate(files)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,note", *lines, "gone.png,x"]) + "\n")
    rows = [json.dumps({"file_name": name, "text": "ü", "n": row}) for row, name in enumerate(files)]
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    assert clipguard("apply", run, folder, "-o", tmp_path / "clean").code == 0
    kept = [lines[row] for row in KEPT]
    assert (tmp_path / "clean" / "metadata.csv").read_text().splitlines() == ["file_name,note", *kept]
    copied = [json.loads(line) for line in (tmp_path / "clean" / "metadata.jsonl").read_text().splitlines()]
    assert copied == [{"file_name": files[row], "text": "ü", "n": row} for row in KEPT]
