"""samples.parquet: flagged first, columns described, each image named and hashed as the source has it."""

import hashlib
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipguard.clip.zero_shot import ClipGuide
from clipguard.data import ImageSource
from clipguard.data.writer import write_parquet
from clipguard.outputs.samples import read_samples, read_texts
from clipguard.pipeline.defender import Defender
from clipguard.runs.samples_table import COLUMNS
from clipguard.types import image_set
from tar_files import write_tar
from tiny_data import few_steps, image_folder, npz, pictures
from tiny_report import make_run
from tiny_runs import CONFIG, samples_of

N = 24


def scanned(path, source, **opened):
    """Return the samples of a scan of the source, in its order; how well it was scanned does not matter."""
    net = replace(CONFIG.early_model, epochs=1)
    detector = replace(CONFIG.trigger_detector, net=replace(net, folds=2))
    quick = replace(CONFIG, early_model=net, trigger_detector=detector)
    Defender(ClipGuide("mini"), path / "run", config=quick).scan(ImageSource.open(source, **opened))
    return samples_of(path / "run")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    few_steps(monkeypatch)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def encoded(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_flagged_come_first_then_all_by_rank_and_every_column_says_what_it_means(tmp_path):
    scanned(tmp_path, image_folder(tmp_path / "data", N))
    table = pq.read_table(tmp_path / "run" / "samples.parquet")
    assert table.column_names == [column.name for column in COLUMNS]
    assert [field.metadata[b"description"].decode() for field in table.schema] == [
        column.description for column in COLUMNS
    ]
    # Of so few samples none is flagged: the others are in the order of their ranks.
    assert table["rank"].to_pylist() == list(range(1, N + 1))
    flagged = pq.read_table(make_run(tmp_path / "tiny") / "samples.parquet").to_pandas()
    assert (flagged["status"][:15] == "flagged").all()
    assert not (flagged["status"][15:] == "flagged").any()
    assert flagged["rank"][:15].is_monotonic_increasing
    assert flagged["rank"][15:].is_monotonic_increasing


def test_a_folders_samples_are_named_by_path_and_hashed_as_files_and_an_unreadable_one_leaves_a_gap(tmp_path):
    folder = image_folder(tmp_path / "data", N)
    (folder / "cat" / "0004.png").write_bytes(b"no image")
    table = scanned(tmp_path, folder)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert table["row"].tolist() == [row for row, name in enumerate(files) if name != "cat/0004.png"]
    assert table["path"].tolist() == [files[row] for row in table["row"]] == table["id"].tolist()
    assert table["sha256"].tolist() == [sha256((folder / name).read_bytes()) for name in table["path"]]


def test_rows_count_from_the_first_of_the_source_also_where_some_are_kept(tmp_path):
    table = scanned(tmp_path, npz(tmp_path / "a.npz", np.arange(N) % 2), rows=(4, N))
    assert table["row"].tolist() == list(range(4, N))
    assert set(table["path"]) == {""}


def test_a_tars_samples_name_shard_and_file(tmp_path):
    images = pictures(N)
    for shard in range(2):
        files = {}
        for row in range(shard, N, 2):
            files |= {
                f"a/{row:03d}.seg.png": encoded(images[row]),
                f"a/{row:03d}.cls": b"%d" % (row // 2 % 2),
            }
        write_tar(tmp_path / f"data-{shard}.tar", files)
    table = scanned(tmp_path, tmp_path / "data-{0..1}.tar", classes=["cat", "dog"])
    rows = [*range(0, N, 2), *range(1, N, 2)]
    assert table["path"].tolist() == [f"data-{row % 2}.tar/a/{row:03d}.seg.png" for row in rows]
    assert table["sha256"].tolist() == [sha256(encoded(images[row])) for row in rows]


@pytest.mark.parametrize("named", [True, False])
def test_a_tables_samples_have_a_path_where_it_names_one(tmp_path, named):
    ids = tuple(f"some/{row}.png" if named else "same.png" for row in range(N))
    data = image_set(pictures(N), np.arange(N) % 2, ("cat", "dog"), ids)
    write_parquet(data, tmp_path / "a.parquet")
    table = scanned(tmp_path, tmp_path / "a.parquet")
    assert table["path"].tolist() == (list(ids) if named else [""] * N)
    assert table["id"].tolist() == (list(ids) if named else [f"a.parquet:{row}" for row in range(N)])


def test_readers_give_the_order_that_they_are_asked_for(tmp_path):
    run = make_run(tmp_path / "run")
    by_table, flagged_first = read_samples(run, order="table")
    by_source, partition = read_samples(run, order="source")
    assert by_source["row"].tolist() == list(range(150))
    assert flagged_first.flagged[:15].all()
    assert np.flatnonzero(partition.flagged).tolist() == list(range(135, 150))
    assert np.array_equal(partition.state[by_table["row"]], flagged_first.state)
    assert by_source["poison_score"].tolist() == sorted(by_table["poison_score"])
    assert read_texts(run, np.array([0]))["id"] == ["train/149.png"]


def test_the_documents_table_is_that_of_the_code():
    text = (Path(__file__).parents[1] / "docs" / "results-format.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", text, re.MULTILINE)
    assert rows[: len(COLUMNS)] == [(name, words[0].upper() + words[1:]) for name, words in COLUMNS]
