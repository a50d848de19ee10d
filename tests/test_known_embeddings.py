"""clip.known_embeddings: embeddings in clip-retrieval's layout are written, and read instead of computed."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipguard.clip.embeddings import ReadingPass, read_source
from clipguard.clip.zero_shot import ClipGuide
from clipguard.compute.engine import LocalEngine
from clipguard.data import ImageSource
from clipguard.errors import ClipguardError
from clipguard.runs import ShardedArray, read_table
from clipguard.types import Preprocessing

GUIDE = ClipGuide("mini")
VIEW = Preprocessing(size=(8, 8))


@pytest.fixture
def source(tmp_path):
    draw = np.random.default_rng(0)
    for row in range(40):
        file = tmp_path / "data" / ("cat" if row < 25 else "dog") / f"{row:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (12, 14, 3), dtype=np.uint8)).save(file)
    return ImageSource.open(tmp_path / "data")


def embedded(source, root, known=None):
    """Return the folder of a finished pass."""
    (root / "embeddings").mkdir(parents=True)
    reading = ReadingPass(
        source=source,
        guide=GUIDE,
        folder=root / "embeddings",
        images=((root / "images", VIEW),),
        known=known,
        shard_rows=16,
    )
    read_source(reading, LocalEngine(), lambda done, total: None)
    return root / "embeddings"


def shuffled(written, folder, source, dtype=np.float32, names=None, scale=1.0):
    """Write the embeddings of a pass as another tool would: in another order, in other files."""
    order = np.random.default_rng(1).permutation(len(source))
    vectors, names = scale * ShardedArray.of(written / "img_emb")[:][order], names or source.ids
    for kind in ("img_emb", "metadata"):
        (folder / kind).mkdir(parents=True)
    for number, part in enumerate(np.array_split(np.arange(len(source)), 3)):
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", vectors[part].astype(dtype))
        table = pa.table({"caption": ["x"] * len(part), "image_path": [names[order[row]] for row in part]})
        pq.write_table(table, folder / "metadata" / f"metadata_{number}.parquet")
    return folder


def test_what_is_written_is_the_layout_of_clip_retrieval(source, tmp_path):
    written = embedded(source, tmp_path / "run")
    names = [read_table(file)["image_path"].tolist() for file in sorted((written / "metadata").iterdir())]
    arrays = [np.load(file) for file in sorted((written / "img_emb").iterdir())]
    assert [len(part) for part in names] == [len(part) for part in arrays] == [16, 16, 8]
    assert tuple(name for part in names for name in part) == source.ids
    np.testing.assert_allclose(np.linalg.norm(np.concatenate(arrays), axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(("dtype", "scale", "near"), [(np.float32, 1.0, 1e-6), (np.float16, 3.0, 1e-3)])
def test_embeddings_of_another_tool_are_found_by_name_whatever_their_order(
    source, tmp_path, dtype, scale, near
):
    written = embedded(source, tmp_path / "run")
    theirs = shuffled(written, tmp_path / "theirs", source, dtype, scale=scale)
    taken = embedded(source, tmp_path / "taken", theirs)
    ours, same = (ShardedArray.of(folder / "img_emb")[:] for folder in (written, taken))
    np.testing.assert_allclose(same, ours, atol=near)
    images = [ShardedArray.of(tmp_path / name / "images")[:] for name in ("run", "taken")]
    assert np.array_equal(*images)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("name", "have none for 1 of 40 images"),
        ("width", "numbers each, those of guide mini"),
        ("zeros", "NaN, Inf or zeros"),
        ("count", "vectors but"),
        ("column", "cannot be read"),
    ],
)
def test_embeddings_that_do_not_belong_to_the_data_are_refused_in_one_line(source, tmp_path, damage, says):
    written = embedded(source, tmp_path / "run")
    names = ("other.png", *source.ids[1:]) if damage == "name" else None
    theirs = shuffled(
        written, tmp_path / "theirs", source, names=names, scale=0.0 if damage == "zeros" else 1.0
    )
    vectors, table = theirs / "img_emb/img_emb_1.npy", theirs / "metadata/metadata_1.parquet"
    if damage == "width":
        for file in theirs.glob("img_emb/*.npy"):
            np.save(file, np.load(file)[:, :-1])
    elif damage == "count":
        np.save(vectors, np.load(vectors)[:-1])
    elif damage == "column":
        pq.write_table(pa.table({"path": ["a"]}), table)
    with pytest.raises(ClipguardError, match=says) as error:
        embedded(source, tmp_path / "taken", theirs)
    assert "\n" not in str(error.value)
