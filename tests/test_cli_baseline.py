"""`--baseline`: what an earlier run has is not embedded again, and what is new is told apart."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from clipguard.clip.baseline import BaselineEmbeddings
from clipguard.clip.model import Clip
from clipguard.errors import ClipguardError
from clipguard.pipeline.baseline import _of_batch
from clipguard.runs import ShardedArray, read_table
from clipguard.runs.summary import ClassChange, Finding, Verdict
from tiny_data import image_folder, pictures

N, NEW = 24, 6


@pytest.fixture
def embedded(monkeypatch):
    """Return the numbers of images that the guide is given, call by call."""
    counts, embed = [], Clip.embed_crops

    def counted(self, crops):
        counts.append(len(crops))
        return embed(self, crops)

    monkeypatch.setattr(Clip, "embed_crops", counted)
    return counts


@pytest.fixture
def earlier(clipguard, tmp_path):
    """Return a scan of a folder, and the folder with new images, one of them known by another label."""
    source = image_folder(tmp_path / "data", n=N)
    scan(clipguard, source, tmp_path / "first")
    for row, pixels in enumerate(pictures(NEW - 1, seed=9)):
        Image.fromarray(pixels).save(source / "cat" / f"new{row}.png")
    shutil.copy(source / "cat" / "0000.png", source / "dog" / "relabelled.png")
    return tmp_path / "first", source


def scan(clipguard, source, out, *options):
    return clipguard("scan", source, "-o", out, "--guide", "mini", "--power", "0", "--json", *options)


def test_only_new_images_are_embedded_and_the_others_have_their_embeddings(
    clipguard, earlier, embedded, tmp_path
):
    first, source = earlier
    embedded.clear()
    ran = scan(clipguard, source, tmp_path / "second", "--baseline", first)
    assert ran.code == 3, ran.err
    # The relabelled one is known by its hash. A model that is loaded embeds one image to try.
    assert [count for count in embedded if count > 1] == [NEW - 1]

    scan(clipguard, source, tmp_path / "anew")
    vectors = {}
    for run in ("second", "anew"):
        folder = tmp_path / run / "stages" / "embeddings"
        vectors[run] = ShardedArray.of(folder / "img_emb")[:]
    np.testing.assert_allclose(vectors["second"], vectors["anew"], atol=1e-5)


def test_the_summary_and_the_table_tell_what_is_new(clipguard, earlier, tmp_path):
    first, source = earlier
    baseline = scan(clipguard, source, tmp_path / "second", "--baseline", first).json["baseline"]
    assert (baseline["new"], baseline["known"], baseline["run_dir"]) == (NEW, N, str(first))
    table = read_table(tmp_path / "second" / "samples.parquet", ("id", "new"))
    names = {name for name, new in zip(table["id"], table["new"], strict=True) if new}
    assert names == {"dog/relabelled.png", *(f"cat/new{row}.png" for row in range(NEW - 1))}


def test_the_terminal_tells_the_batch_apart(clipguard, earlier, tmp_path):
    first, source = earlier
    ran = clipguard(
        *("scan", source, "-o", tmp_path / "second", "--guide", "mini", "--power", "0", "--baseline", first)
    )
    assert f"New since {first}: {NEW} images, 0 of them flagged: undecided" in ran.out


def test_what_cannot_be_a_baseline_is_refused(refused, earlier, tmp_path):
    first, source = earlier
    of_tiny = ("scan", source, "--guide", "mini", "--baseline")
    refused(*of_tiny, tmp_path / "gone", "-o", tmp_path / "run", expected=["gone", "no run folder"])
    refused(*of_tiny, first, "-o", first, expected=["the run folder itself"])
    manifest = json.loads((first / "manifest.json").read_text())
    manifest["guide"]["sha256"] = "0" * 64
    (first / "manifest.json").write_text(json.dumps(manifest))
    refused(*of_tiny, first, "-o", tmp_path / "run", expected=["was read by the guide mini"])
    shutil.rmtree(first / "stages" / "embeddings")
    refused(*of_tiny, first, "-o", tmp_path / "run", expected=["no finished embeddings"])


def test_a_baseline_that_lacks_embeddings_is_refused(clipguard, earlier):
    first, _ = earlier
    folder = first / "stages" / "embeddings"
    (file,) = (folder / "img_emb").glob("*.npy")
    np.save(file, np.load(file)[:-1])
    with pytest.raises(ClipguardError, match=f"has {N - 1} embeddings of {N} images"):
        BaselineEmbeddings(folder)


FINDING = Finding(class_name="cat", label=0, kind="trigger", flagged=9)
SUSPICIOUS = Verdict(answer="suspicious", reasons=["so it is"], findings=[FINDING], complete=False)


def test_a_batch_is_suspicious_where_new_samples_are_part_of_a_finding():
    verdict = _of_batch(SUSPICIOUS, [ClassChange(class_name="cat", flagged=9, new=2)])
    assert (verdict.answer, verdict.findings, verdict.complete) == ("suspicious", [FINDING], False)
    assert verdict.reasons == ["2 of 9 flagged samples of class cat are new"]
    # A reviewer has dropped eleven samples beyond what the finding counts.
    verdict = _of_batch(SUSPICIOUS, [ClassChange(class_name="cat", flagged=20, new=13)])
    assert verdict.reasons == ["13 of 20 flagged samples of class cat are new"]


@pytest.mark.parametrize(("name", "new"), [("cat", 0), ("dog", 3)])
def test_a_batch_is_undecided_where_only_known_samples_are_suspicious(name, new):
    verdict = _of_batch(SUSPICIOUS, [ClassChange(class_name=name, flagged=9, new=new)])
    assert (verdict.answer, verdict.findings, verdict.complete) == ("undecided", [], False)


@pytest.mark.parametrize("answer", ["clean", "undecided"])
def test_another_answer_is_that_of_the_whole(answer):
    verdict = _of_batch(Verdict(answer=answer, reasons=["so it is"]), [])
    assert (verdict.answer, verdict.reasons) == (answer, ["so it is"])
