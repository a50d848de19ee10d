"""clip.embeddings: one read of the source gives all, by shards that a kill leaves whole or not at all."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clipguard.clip import embeddings as module
from clipguard.clip.embeddings import ReadingPass
from clipguard.data import ImageSource
from clipguard.data.decode import decode, prepared
from clipguard.data.provenance import recorded_rows, recorded_source, rows_file
from clipguard.data.writer import write_parquet
from clipguard.errors import ClipguardError
from clipguard.runs import ShardedArray, read_table
from clipguard.safety.limits import Limits
from clipguard.types import Preprocessing, image_set
from tar_files import samples, tar_bytes
from tiny_data import NAMES, image_folder, npz, pictures, tree
from tiny_reading import (
    SIZE,
    VIEW,
    Power,
    UnitByUnit,
    counting,
    mixed_folder,
    read_into,
    tiny_guide,
)

N = 24
LARGER = Preprocessing(size=(12, 9), resize="shortest", crop=0.9)


@pytest.fixture
def source(tmp_path):
    return mixed_folder(tmp_path / "data")


@pytest.fixture
def guide():
    return tiny_guide()


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    of_rows(monkeypatch, 6)


def of_rows(monkeypatch, rows, chunk=4):
    monkeypatch.setattr(module, "SHARD", rows)
    for place in ("embeddings", "model"):
        monkeypatch.setattr(f"clipguard.clip.{place}.IMAGE_CHUNK", chunk)


def undisturbed(tmp_path, source):
    """Return all files of a pass that nothing disturbs."""
    read_into(tmp_path / "undisturbed", source)
    return tree(tmp_path / "undisturbed")


def metadata(folder):
    """Return the tables beside the embeddings, one after the other."""
    tables = [read_table(file) for file in sorted((folder / "metadata").glob("*.parquet"))]
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def units_of(source, shards):
    return ReadingPass(source=source, guide=None, folder=Path(), images=()).units(shards)


def parquet(path, n, rows_a_group=None):
    write_parquet(image_set(pictures(n, size=4), np.arange(n) % 2, NAMES), path)
    if rows_a_group:
        import pyarrow.parquet as pq

        pq.write_table(pq.read_table(path), path, row_group_size=rows_a_group)
    return path


# ---- what is written


def test_images_embeddings_labels_and_names_stand_in_the_order_of_the_source(tmp_path, source, guide):
    folder = read_into(tmp_path / "out", source, guide, {"images": VIEW, "other": LARGER})
    embeddings = ShardedArray.of(folder / "img_emb")
    images, larger = (ShardedArray.of(tmp_path / "out" / name) for name in ("images", "other"))
    assert (images.shape, larger.shape, embeddings.shape) == ((N, *SIZE, 3), (N, 12, 9, 3), (N, 48))
    about = metadata(folder)
    assert tuple(about["image_path"]) == source.ids
    assert np.array_equal(about["label"], source.labels)
    for row, item in enumerate(source.read(range(N))):
        pixels, at = decode(item), np.array([row])
        assert np.array_equal(images[at][0], prepared(pixels, VIEW))
        assert np.array_equal(larger[at][0], prepared(pixels, LARGER))
        np.testing.assert_allclose(embeddings[at], guide.clip.embed_images([pixels]), atol=1e-6)
    assert json.loads((folder / "unreadable.json").read_text()) == []
    assert guide.clip.network.images == 2 * N


def test_each_shard_has_its_files_in_the_layout_of_clip_retrieval_and_nothing_else_is_left(tmp_path, source):
    # https://github.com/rom1504/clip-retrieval: img_emb/img_emb_0.npy beside metadata/metadata_0.parquet.
    folder = read_into(tmp_path / "out", source)
    expected = {"inputs.json", "unreadable.json"}
    for shard in ("000000", "000001", "000002", "000003"):
        expected |= {f"img_emb/img_emb_{shard}.npy", f"metadata/metadata_{shard}.parquet"}
        expected |= {f"rows/rows_{shard}.parquet"}
        vectors = np.load(folder / f"img_emb/img_emb_{shard}.npy")
        rows = read_table(folder / f"metadata/metadata_{shard}.parquet")
        assert vectors.dtype == np.float32
        assert len(vectors) == len(rows["image_path"]) == 6
    found = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert found == expected


def test_unreadable_images_are_left_out_and_listed_with_the_reason(tmp_path):
    source = mixed_folder(tmp_path / "data", broken=(3, 20))
    folder = read_into(tmp_path / "out", source)
    listed = json.loads((folder / "unreadable.json").read_text())
    assert [entry["id"] for entry in listed] == [source.ids[3], source.ids[20]]
    assert all(entry["reason"] for entry in listed)
    rows = [row for row in range(N) if row not in (3, 20)]
    about, embeddings = metadata(folder), ShardedArray.of(folder / "img_emb")
    assert tuple(about["image_path"]) == tuple(source.ids[row] for row in rows)
    assert np.array_equal(about["label"], source.labels[rows])
    assert len(embeddings) == len(about["label"]) == N - 2
    images = ShardedArray.of(tmp_path / "out/images")[:]
    for place, item in enumerate(source.read(np.array(rows))):
        assert np.array_equal(images[place], prepared(decode(item), VIEW))
    recorded = recorded_rows(rows_file(folder, 0))
    assert [bool(reason) for reason in recorded.reasons] == [row == 3 for row in range(6)]
    assert recorded_source(folder)["unreadable_rows"] == [3, 20]
    assert recorded_source(folder)["largest"] == [10, 10]


def test_a_shard_without_any_readable_image_is_passed_over(tmp_path, monkeypatch):
    of_rows(monkeypatch, 2)
    source = mixed_folder(tmp_path / "data", broken=(4, 5))
    folder = read_into(tmp_path / "out", source)
    assert ShardedArray.of(folder / "img_emb").shape == (N - 2, 48)
    assert ShardedArray.of(tmp_path / "out/images").shape == (N - 2, *SIZE, 3)
    read_into(tmp_path / "out", source, views={"other": LARGER}, again=True)
    assert ShardedArray.of(tmp_path / "out/other").shape == (N - 2, 12, 9, 3)


@pytest.mark.parametrize("rows", [4, 20, 1000])
def test_the_shard_size_changes_no_value_where_chunks_stay_the_same(tmp_path, source, monkeypatch, rows):
    of_rows(monkeypatch, 12)
    read_into(tmp_path / "one", source)
    of_rows(monkeypatch, rows)
    read_into(tmp_path / "other", source)
    for part in ("embeddings/img_emb", "images"):
        one, other = (ShardedArray.of(tmp_path / name / part)[:] for name in ("one", "other"))
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("engine", [None, UnitByUnit()])
def test_neither_lanes_nor_the_engine_change_a_byte(tmp_path, source, engine, lanes):
    read_into(tmp_path / "out", source, engine=engine, lanes=lanes)
    assert tree(tmp_path / "out") == undisturbed(tmp_path, source)


def test_progress_ends_at_the_whole_and_never_goes_back(tmp_path, source, monkeypatch):
    of_rows(monkeypatch, 10)
    calls = []
    read_into(tmp_path / "out", source, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(10, N), (20, N), (24, N)]


# ---- how often the source is read


def test_every_row_is_fetched_once_for_all_sizes_and_a_later_size_fetches_the_readable_ones(tmp_path, guide):
    source = counting(mixed_folder(tmp_path / "data", broken=(3, 20)))
    read_into(tmp_path / "out", source, guide, {"images": VIEW, "other": LARGER})
    assert source.reader.rows == list(range(N))
    assert guide.clip.network.images == N - 2
    source.reader.rows.clear()
    read_into(tmp_path / "out", source, views={"third": LARGER}, again=True)
    assert source.reader.rows == [row for row in range(N) if row not in (3, 20)]
    one, other = (ShardedArray.of(tmp_path / "out" / name)[:] for name in ("other", "third"))
    assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("engine", [None, UnitByUnit()])
def test_a_row_group_is_read_from_its_start_once_however_many_shards_it_fills(tmp_path, monkeypatch, engine):
    of_rows(monkeypatch, 1024, 32)
    file = parquet(tmp_path / "a.parquet", 3000, 3000)
    source = counting(ImageSource.open(file, limits=Limits(isolated=False)))
    read_into(tmp_path / "out", source, engine=engine)
    assert (source.reader.begun, len(source.reader.rows)) == (1, 3000)
    assert len(list((tmp_path / "out/images").iterdir())) == 3


# ---- kills


@pytest.mark.parametrize("fails_after", [0, 4, 10, 18])
def test_a_killed_pass_goes_on_at_the_first_shard_that_is_not_whole(tmp_path, source, guide, fails_after):
    guide.clip.network.fails_after = fails_after
    with pytest.raises(Power):
        read_into(tmp_path / "out", source, guide)
    counted, again = counting(source), tiny_guide()
    read_into(tmp_path / "out", counted, again)
    whole = 6 * (fails_after // 6)
    assert counted.reader.rows == list(range(whole, N))
    assert again.clip.network.images == N - whole
    assert tree(tmp_path / "out") == undisturbed(tmp_path, source)


@pytest.mark.parametrize("writer", ["write_pieces", "write_array", "write_table", "record_rows"])
def test_a_kill_while_a_shard_is_written_leaves_it_to_be_done_again(tmp_path, source, monkeypatch, writer):
    real = getattr(module, writer)

    def killing(path, *rest):
        if path.stem.endswith("000001"):
            raise Power
        real(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(module, writer, killing)
        with pytest.raises(Power):
            read_into(tmp_path / "out", source)
    counted = counting(source)
    read_into(tmp_path / "out", counted)
    assert counted.reader.rows == list(range(6, N))
    assert tree(tmp_path / "out") == undisturbed(tmp_path, source)


def test_a_kill_at_the_very_end_reads_no_image_again(tmp_path, source, monkeypatch):
    def kill(*_):
        raise Power

    with monkeypatch.context() as patch:
        patch.setattr(module, "record_source", kill)
        with pytest.raises(Power):
            read_into(tmp_path / "out", source)
    counted = counting(source)
    read_into(tmp_path / "out", counted)
    assert counted.reader.rows == []
    assert tree(tmp_path / "out") == undisturbed(tmp_path, source)


# ---- refusals


@pytest.mark.parametrize(
    ("broken", "says"),
    [((0, 1, 2), "at least 3 of 24 images .* more than 10%"), (tuple(range(N)), "at least 6 of 24 images")],
)
def test_too_many_unreadable_images_are_refused_as_soon_as_that_is_known(tmp_path, broken, says):
    source = mixed_folder(tmp_path / "data", broken=broken)
    with pytest.raises(ClipguardError, match=says) as caught:
        read_into(tmp_path / "out", source)
    assert "'cat/000.png'" in str(caught.value)
    assert "\n" not in str(caught.value)
    # The first shard says so: of the second, nothing is written any more.
    assert not list((tmp_path / "out").rglob("*_000001.*"))


def test_a_tenth_unreadable_passes_and_what_cannot_become_a_row_counts_too(tmp_path):
    source = mixed_folder(tmp_path / "data", n=20, broken=(3, 15))
    read_into(tmp_path / "out", source)
    more = replace(source, refused=tuple(recorded_rows(rows_file(tmp_path / "out/embeddings", 0)).unreadable))
    with pytest.raises(ClipguardError, match="at least 3 of 21 images"):
        read_into(tmp_path / "more", more)


def test_too_many_unreadable_images_of_a_large_source_stop_the_pass_long_before_its_end(tmp_path):
    data = [(b"torn" if row < 80 else pictures(1, size=4)[0], row % 2) for row in range(600)]
    source = counting(ImageSource.open(data, classes=list(NAMES)))
    with pytest.raises(ClipguardError, match="more than 10%"):
        read_into(tmp_path / "out", source)
    assert len(source.reader.rows) < 400


def test_an_image_that_changes_before_a_second_pass_is_refused_by_name(tmp_path, source):
    read_into(tmp_path / "out", source)
    file = tmp_path / "data" / source.ids[7]
    for content in (file.read_bytes() + b"\0", b"torn"):
        file.write_bytes(content)
        with pytest.raises(ClipguardError, match=f"'{source.ids[7]}' changed since it was read"):
            read_into(tmp_path / "out", source, views={"other": LARGER}, again=True)
        assert not list((tmp_path / "out/other").glob("*_000001.npy"))


def test_a_guide_that_gives_no_numbers_is_one_clear_error_and_no_embedding_is_kept(tmp_path, source, guide):
    guide.clip.network.encode_image = lambda pixels, normalize: pixels.flatten(1) / 0
    with pytest.raises(ClipguardError, match="guide tiny returns NaN or Inf"):
        read_into(tmp_path / "out", source, guide)
    assert not list((tmp_path / "out").rglob("*.npy"))


# ---- units


def test_any_row_of_folders_tars_and_arrays_is_a_start(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_bytes(samples(20)))
    folder = ImageSource.open(image_folder(tmp_path / "images", n=20))
    arrays = ImageSource.open(npz(tmp_path / "a.npz", np.arange(20) % 2))
    for source in (folder, arrays, ImageSource.open(tmp_path / "a.tar", classes=list(NAMES))):
        assert source.starts.tolist() == list(range(20))
        assert units_of(source, [0, 1, 2, 3]) == [[0], [1], [2], [3]]
        assert units_of(source, [1, 3]) == [[1], [3]]


def test_shards_of_one_row_group_are_one_unit(tmp_path):
    whole = ImageSource.open(parquet(tmp_path / "a.parquet", 40, 16))
    assert whole.starts.tolist() == [0, 16, 32]
    # Shards begin at rows 0, 6, 12 | 18, 24, 30 | 36.
    assert units_of(whole, range(7)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert units_of(whole, [0, 2, 3, 6]) == [[0, 2], [3], [6]]


def test_row_groups_of_several_files_and_of_some_rows_are_starts(tmp_path):
    for number in range(2):
        parquet(tmp_path / f"train-{number:05d}-of-00002.parquet", 20, 15)
    assert ImageSource.open(tmp_path).starts.tolist() == [0, 15, 20, 35]
    some = ImageSource.open(tmp_path, rows=(10, 30))
    assert some.starts.tolist() == [0, 5, 10]
    assert units_of(some, range(4)) == [[0], [1], [2, 3]]
    few = some.take(np.array([1, 2, 12, 19]))
    assert few.starts.tolist() == [0, 2]
