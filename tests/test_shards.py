"""data.shards: a set of numbered shards is opened whole, unless a part is asked for."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipguard.data import ImageSource
from tar_files import samples, write_tar
from test_sources import png, refusal


def shard(path):
    """Write two rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": [png(1), png(2)], "label": ["cat", "dog"]}), path)
    return path


def name(number, total=3, split="train", suffix="parquet"):
    """Return a shard's name as Hugging Face has it."""
    return f"{split}-{number:05d}-of-{total:05d}.{suffix}"


@pytest.mark.parametrize(
    ("there", "missing", "part", "rows"),
    [
        ([0], 1, "train-00000-of-00003.parquet", 2),
        ([0, 1], 2, "train-{00000..00001}-of-00003.parquet", 4),
        ([1, 2], 0, "train-{00001..00002}-of-00003.parquet", 4),
        ([0, 2], 1, "train-00000-of-00003.parquet", 2),
    ],
)
@pytest.mark.parametrize("pattern", ["", "train-*.parquet"])
def test_an_incomplete_set_is_refused_with_the_first_that_is_missing(
    tmp_path, there, missing, part, rows, pattern
):
    for number in there:
        shard(tmp_path / name(number))
    message = refusal(tmp_path / pattern)
    assert f"{tmp_path} lacks {name(missing)}: " in message
    assert f"'{part}'" in message
    assert len(ImageSource.open(tmp_path / part)) == rows


def test_one_shard_by_its_name_is_opened_whatever_is_missing(tmp_path):
    assert len(ImageSource.open(shard(tmp_path / name(1)))) == 2


def test_a_whole_set_is_opened_and_so_is_each_of_two(tmp_path):
    for split in ("test", "train"):
        for number in range(2):
            shard(tmp_path / name(number, 2, split))
    assert len(ImageSource.open(tmp_path / "train-*.parquet")) == 4
    assert len(ImageSource.open(tmp_path / "*.parquet")) == 8
    (tmp_path / name(0, 2, "test")).unlink()
    assert f"lacks {name(0, 2, 'test')}: " in refusal(tmp_path / "*.parquet")


def test_a_clone_of_the_hub_that_is_not_whole_is_refused(tmp_path):
    shard(tmp_path / "data" / name(0))
    assert f"{tmp_path / 'data'} lacks {name(1)}: " in refusal(tmp_path)


def test_archives_may_be_numbered_so_as_well(tmp_path):
    for number in (0, 2):
        write_tar(tmp_path / name(number, suffix="tar"), samples(2))
    assert f"lacks {name(1, suffix='tar')}: " in refusal(tmp_path)
    write_tar(tmp_path / name(1, suffix="tar"), samples(2))
    assert len(ImageSource.open(tmp_path, classes=["cat", "dog"])) == 6


def test_a_set_that_claims_very_many_shards_is_refused_at_once(tmp_path):
    shard(tmp_path / "train-0-of-999999999.parquet")
    assert "lacks train-000000001-of-999999999.parquet" in refusal(tmp_path)
