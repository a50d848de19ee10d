"""lab.benchmark.guides: the same floats whatever is remembered; degraded guides."""

import numpy as np
import pytest

from clipguard.clip.zero_shot import ClipGuide
from clipguard.errors import ClipguardError
from clipguard.lab.benchmark.config import GuideChoice
from clipguard.lab.benchmark.guides import (
    BenchGuide,
    RememberingClip,
    accuracy,
    degraded,
    guide_of,
    remembering,
)
from clipguard.types import image_set
from tiny_data import pictures

IMAGES = pictures(40)
PLAIN = ClipGuide("mini").clip
NAMES = ("red", "green", "blue")


@pytest.fixture(scope="module")
def embedded() -> np.ndarray:
    """Return embeddings in full chunks: 40 images and their copies, as the memory fills them up."""
    return PLAIN.embed_images(np.concatenate([IMAGES, np.repeat(IMAGES[-1:], 24, 0)]))[:40]


@pytest.fixture
def counted(tmp_path, monkeypatch) -> tuple[RememberingClip, list[int]]:
    """Return a memory, and how many images were embedded anew each time."""
    clip, embedded_now = remembering(PLAIN, tmp_path), []
    learn = RememberingClip._write
    monkeypatch.setattr(
        RememberingClip,
        "_write",
        lambda self, keys, vectors, seconds: (
            embedded_now.append(len(keys)),
            learn(self, keys, vectors, seconds),
        ),
    )
    return clip, embedded_now


def test_embeddings_are_those_of_full_chunks_whatever_came_before(tmp_path, embedded):
    clip = remembering(PLAIN, tmp_path)
    order = np.random.default_rng(0).permutation(40)
    # One by one, then some, then all: each time other images share the chunk.
    one = clip.embed_images(IMAGES[order[:1]])
    some = clip.embed_images(IMAGES[order[:7]])
    assert np.array_equal(one, embedded[order[:1]])
    assert np.array_equal(some, embedded[order[:7]])
    assert np.array_equal(clip.embed_images(IMAGES), embedded)
    assert np.array_equal(remembering(PLAIN, tmp_path).embed_images(list(IMAGES)), embedded)


def test_only_what_is_unknown_is_embedded_also_when_the_memory_is_read_back(counted, tmp_path):
    clip, embedded_now = counted
    clip.embed_images(IMAGES[:20])
    clip.embed_images(IMAGES[:3])
    assert embedded_now == [20]
    other = remembering(PLAIN, tmp_path)
    changed = IMAGES[:20].copy()
    changed[4, 0, 0] = 255
    other.embed_images(changed)
    assert embedded_now == [20, 1]


def test_the_pace_is_that_of_the_passes_that_filled_the_memory_also_when_read_back(tmp_path):
    clip = remembering(PLAIN, tmp_path)
    clip.embed_images(IMAGES[:2])
    again = remembering(PLAIN, tmp_path)
    again.embed_images(IMAGES[:2])
    assert again.pace == clip.pace > 0
    # Of other images that the memory holds this object knows no time.
    remembering(PLAIN, tmp_path).embed_images(IMAGES[2:40])
    third = remembering(PLAIN, tmp_path)
    assert third.pace == 0
    third.embed_images(IMAGES[:2])
    assert third.pace == clip.pace


def test_a_damaged_memory_is_named(tmp_path):
    clip = remembering(PLAIN, tmp_path)
    clip.embed_images(IMAGES[:1])
    file = next(tmp_path.rglob("*.npy"))
    file.write_bytes(b"nothing")
    with pytest.raises(ClipguardError, match=file.name):
        remembering(PLAIN, tmp_path).embed_images(IMAGES[:1])


def guide(tmp_path, degrade: float) -> BenchGuide:
    """Return a guide of the benchmark around the model that is loaded already."""
    made = guide_of(GuideChoice(name="mini", degrade=degrade), tmp_path, tmp_path)
    made.__dict__["clip"] = remembering(PLAIN, tmp_path, degrade)
    return made


def test_a_guide_of_the_benchmark_gives_the_plain_guides_logits(tmp_path, embedded):
    plain, made = ClipGuide("mini"), guide(tmp_path, 0.0)
    one, other = plain.logits(embedded, NAMES), made.logits(embedded, NAMES)
    assert np.array_equal(one.logits[:], other.logits[:])
    assert (one.scale, one.source) == (other.scale, other.source)


def test_a_degraded_guide_changes_embeddings_and_logits_and_a_whole_one_no_byte(tmp_path, embedded):
    whole, half, none = (guide(tmp_path, share) for share in (0.0, 0.5, 1.0))
    vectors = {one.degrade: one.clip.embed_images(IMAGES) for one in (none, half, whole)}
    assert vectors[0.0].tobytes() == embedded.tobytes()
    logits = {share: whole.logits(vectors[share], NAMES).logits[:] for share in vectors}
    assert logits[0.0].tobytes() == ClipGuide("mini").logits(embedded, NAMES).logits[:].tobytes()
    kept = {share: np.sum(vectors[share] * embedded, axis=1) for share in vectors}
    # The mix of two nearly orthogonal unit vectors in equal shares lies at 45 degrees.
    assert np.allclose(kept[0.5], np.sqrt(0.5), atol=0.15)
    assert np.abs(kept[1.0]).max() < 0.3
    for share in (0.5, 1.0):
        assert np.allclose(np.linalg.norm(vectors[share], axis=1), 1, atol=1e-6)
        assert (np.abs(logits[share] - logits[0.0]) > 1e-4).mean() > 0.9
    assert (whole.name, none.name) == ("mini", "mini degraded by 1")
    assert len({one.fingerprint for one in (whole, half, none)}) == 3
    assert none.weights_verified_by is None
    assert whole.weights_verified_by == "embedded"


def test_the_noise_of_an_image_is_its_own_and_the_same_in_every_pass(tmp_path):
    one, other = (guide(tmp_path / name, 0.7).clip for name in "ab")
    order = np.random.default_rng(0).permutation(40)
    vectors = one.embed_images(IMAGES)
    assert np.array_equal(other.embed_images(IMAGES[order]), vectors[order])
    noise = degraded(np.zeros((40, 384), np.float32), [bytes([row]) for row in range(40)], 1.0)
    assert np.abs(noise @ noise.T - np.eye(40)).max() < 0.3


def test_accuracy_falls_with_the_degradation_down_to_chance(tmp_path):
    labels = np.arange(600) % 3
    spread = np.random.default_rng(0).standard_normal((600, 384)) * 0.03
    near = ClipGuide("mini").class_embeddings(NAMES)[labels] + spread
    vectors = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)
    keys = [row.to_bytes(2) for row in range(600)]
    whole = guide(tmp_path, 0.0)

    def right(share: float) -> float:
        return float(
            np.mean(whole.logits(degraded(vectors, keys, share), NAMES).logits[:].argmax(1) == labels)
        )

    shares = [right(share) for share in (0.0, 0.5, 0.9, 1.0)]
    assert shares[0] > 0.9
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[2] + 0.1
    # Chance is a third; three standard deviations of 600 draws are 6 points.
    assert abs(shares[3] - 1 / 3) < 0.06


def test_a_guides_accuracy_is_the_share_of_images_that_it_gives_their_label(tmp_path, embedded):
    made = guide(tmp_path, 0.0)
    opinion = made.logits(embedded, NAMES).logits[:].argmax(1)
    wrong = opinion.copy()
    wrong[:10] = (wrong[:10] + 1) % 3
    data = image_set(IMAGES, opinion, NAMES)
    assert accuracy(made, data, opinion) == 1.0
    assert accuracy(made, data, wrong) == 0.75


def test_a_guides_accuracy_is_the_same_in_small_shards_and_remembers_all_images(
    counted, monkeypatch, tmp_path
):
    clip, embedded_now = counted
    made = guide(tmp_path, 0.0)
    made.__dict__["clip"] = clip
    data = image_set(IMAGES, np.arange(40) % 3, NAMES)
    whole = accuracy(made, data, data.labels)
    monkeypatch.setattr("clipguard.lab.benchmark.guides.SHARD", 16)
    assert accuracy(made, data, data.labels) == whole
    assert embedded_now == [40]


def test_a_local_folder_starts_from_the_benchmarks_own(tmp_path):
    made = guide_of(GuideChoice(name="local-dir:guides/bad"), tmp_path, tmp_path)
    assert made.model == f"local-dir:{tmp_path / 'guides/bad'}"
    elsewhere = guide_of(GuideChoice(name="local-dir:/guides/bad"), tmp_path, tmp_path)
    assert elsewhere.model == "local-dir:/guides/bad"
