"""lab.benchmark.embeddings and .guides: the same floats whatever is remembered; guides made worse."""

import numpy as np
import pytest

from clipguard.clip.zero_shot import ClipGuide
from clipguard.errors import ClipguardError
from clipguard.lab.benchmark.config import GuideChoice
from clipguard.lab.benchmark.embeddings import RememberingClip, remembering
from clipguard.lab.benchmark.guides import BenchGuide, accuracy, guide_of
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
    clip, asked = remembering(PLAIN, tmp_path), []
    learn = RememberingClip._write
    monkeypatch.setattr(
        RememberingClip,
        "_write",
        lambda self, keys, vectors, seconds: (asked.append(len(keys)), learn(self, keys, vectors, seconds)),
    )
    return clip, asked


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


def test_what_is_foreseen_is_embedded_at_once_and_only_what_is_unknown(counted, tmp_path):
    clip, asked = counted
    clip.foresee(IMAGES[:20])
    assert asked == []
    clip.embed_images(IMAGES[:3])
    clip.embed_images(IMAGES[:20])
    assert asked == [20]
    other = remembering(PLAIN, tmp_path)
    changed = IMAGES[:20].copy()
    changed[4, 0, 0] = 255
    other.embed_images(changed)
    assert asked == [20, 1]


def test_the_pace_is_that_of_the_passes_that_filled_the_memory_also_when_read_back(tmp_path):
    clip = remembering(PLAIN, tmp_path)
    assert clip.pace is None
    clip.embed_images(IMAGES[:2])
    again = remembering(PLAIN, tmp_path)
    again.embed_images(IMAGES[:2])
    assert again.pace == clip.pace > 0


def test_a_damaged_memory_is_told_by_name(tmp_path):
    clip = remembering(PLAIN, tmp_path)
    clip.embed_images(IMAGES[:1])
    file = next(tmp_path.rglob("*.npz"))
    file.write_bytes(b"nothing")
    with pytest.raises(ClipguardError, match=file.name):
        remembering(PLAIN, tmp_path).embed_images(IMAGES[:1])


def guide(tmp_path, degrade: float) -> BenchGuide:
    """Return a guide of the benchmark around the model that is loaded already."""
    made = guide_of(GuideChoice(name="mini", degrade=degrade), tmp_path, tmp_path)
    made.__dict__["clip"] = remembering(PLAIN, tmp_path)
    return made


def test_a_guide_of_the_benchmark_says_what_the_plain_guide_says(tmp_path, embedded):
    plain, made = ClipGuide("mini"), guide(tmp_path, 0.0)
    one, other = plain.logits(embedded, NAMES), made.logits(embedded, NAMES)
    assert np.array_equal(one.logits, other.logits)
    assert (one.scale, one.source) == (other.scale, other.source)


def test_a_degraded_guide_keeps_the_spread_of_its_opinions_and_has_a_fingerprint_of_its_own(
    tmp_path, embedded
):
    whole, none = guide(tmp_path, 0.0), guide(tmp_path, 1.0)
    one, other = whole.logits(embedded, NAMES), none.logits(embedded, NAMES)
    assert np.allclose(one.logits.mean(), other.logits.mean(), atol=0.02)
    assert np.isclose(one.logits.std(), other.logits.std(), rtol=0.3)
    half = guide(tmp_path, 0.5).logits(embedded, NAMES)
    assert np.allclose(half.logits, (one.logits + other.logits) / 2, atol=1e-6)
    assert np.array_equal(other.logits, guide(tmp_path, 1.0).logits(embedded, NAMES).logits)
    assert whole.fingerprint != none.fingerprint
    assert none.name == "mini degraded by 1"


def test_accuracy_falls_with_the_degradation_down_to_chance(tmp_path):
    labels = np.arange(600) % 3
    spread = np.random.default_rng(0).standard_normal((600, 384)) * 0.03
    near = ClipGuide("mini").class_embeddings(NAMES)[labels] + spread
    vectors = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)
    right = [
        float(np.mean(guide(tmp_path, share).logits(vectors, NAMES).logits.argmax(1) == labels))
        for share in (0.0, 0.3, 0.6, 1.0)
    ]
    assert right[0] > 0.9
    assert right == sorted(right, reverse=True)
    # Chance is a third; three standard deviations of 600 draws are 6 points.
    assert abs(right[3] - 1 / 3) < 0.06


def test_a_guides_accuracy_is_the_share_of_images_that_it_gives_their_label(tmp_path, embedded):
    made = guide(tmp_path, 0.0)
    opinion = made.logits(embedded, NAMES).logits.argmax(1)
    wrong = opinion.copy()
    wrong[:10] = (wrong[:10] + 1) % 3
    data = image_set(IMAGES, opinion, NAMES)
    assert accuracy(made, data, opinion) == 1.0
    assert accuracy(made, data, wrong) == 0.75


def test_a_local_folder_starts_from_the_benchmarks_own(tmp_path):
    made = guide_of(GuideChoice(name="local-dir:guides/bad"), tmp_path, tmp_path)
    assert made.model == f"local-dir:{tmp_path / 'guides/bad'}"
    elsewhere = guide_of(GuideChoice(name="local-dir:/guides/bad"), tmp_path, tmp_path)
    assert elsewhere.model == "local-dir:/guides/bad"
