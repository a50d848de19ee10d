"""Cleaning a guide: losses, captions, patterns, the folder that is written, and what cleaning does."""

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipguard.clip.cleaning import Cleaning, FineTuning, Inversion, called, cleaned, methods, write_guide
from clipguard.clip.cleaning.captions import captions_by_class, changed_caption
from clipguard.clip.cleaning.losses import cross_modal_loss, directed_loss, in_modal_loss
from clipguard.clip.cleaning.packing import ABOUT, config_of
from clipguard.clip.cleaning.patterns import Pattern, bounded_mask, inverted_pattern, share_at
from clipguard.clip.cleaning.squares import COLOURS, best_squares, squares
from clipguard.clip.loading import CONFIG, WEIGHTS, load_clip
from clipguard.clip.zero_shot import ClipGuide
from clipguard.errors import ClipguardError
from clipguard.seeds import Seed
from clipguard.types import image_set
from test_clip import write_model
from tiny_guide import NAMES, coloured_images, tiny_guide

SEED = Seed(0).child("test_guide_cleaning")
QUICK = FineTuning(epochs=8, lr=3e-3, batch_size=24, warmup=2)


def silent(done, total):
    """Take progress and show none."""


@pytest.fixture(scope="module")
def guide(tmp_path_factory):
    return tiny_guide(tmp_path_factory.mktemp("guide"))


def unit(count, width, name):
    vectors = SEED.child(name).generator().standard_normal((count, width))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def slow_directed(queries, keys, scale, classes):
    """Return the loss pair by pair."""
    total = 0.0
    for i in range(len(queries)):
        weights = [np.exp(scale * np.dot(queries[i], key)) for key in keys]
        own = [j for j in range(len(keys)) if classes[j] == classes[i]]
        total -= sum(np.log(weights[j] / sum(weights)) for j in own) / len(own)
    return total / len(queries)


@pytest.mark.parametrize("classes", [[0, 1, 2, 3, 4], [0, 1, 0, 0, 1]])
def test_the_losses_are_those_of_a_loop_over_pairs(classes):
    first, second, texts, changed = (unit(5, 7, name) for name in "abcd")
    tensors = [torch.from_numpy(one) for one in (first, second, texts, changed)]
    scale, labels = torch.tensor(9.0, dtype=torch.float64), torch.tensor(classes)
    directed = slow_directed(first, texts, 9.0, classes)
    assert float(directed_loss(tensors[0], tensors[2], scale, labels)) == pytest.approx(directed)
    both = (directed + slow_directed(texts, first, 9.0, classes)) / 2
    assert float(cross_modal_loss(tensors[0], tensors[2], scale, labels)) == pytest.approx(both)
    inside = slow_directed(first, second, 9.0, range(5)) + slow_directed(texts, changed, 9.0, classes)
    computed = in_modal_loss((tensors[0], tensors[1]), (tensors[2], tensors[3]), scale, labels)
    assert float(computed) == pytest.approx(inside / 2)


def test_with_one_pair_a_class_the_loss_is_that_of_open_clip():
    from open_clip.loss import ClipLoss

    images, texts = (torch.from_numpy(unit(6, 8, name)) for name in "ef")
    scale = torch.tensor(20.0, dtype=torch.float64)
    expected = float(ClipLoss()(images, texts, scale))
    assert float(cross_modal_loss(images, texts, scale, torch.arange(6))) == pytest.approx(expected)


WORDS = st.lists(st.sampled_from(["a", "photo", "of", "the", "big", "dog"]), min_size=1, max_size=9)


@given(WORDS, st.integers(0, 99))
def test_a_changed_caption_has_words_of_the_caption_alone_and_at_least_one(words, seed):
    caption = " ".join(words)
    after = changed_caption(caption, np.random.default_rng(seed)).split()
    assert 1 <= len(after) <= len(words)
    assert all(after.count(word) <= words.count(word) for word in after)
    if len(words) == 1:
        assert after == words


def test_captions_are_changed_in_both_ways_and_as_often_as_asked():
    caption, draw = "a photo of a dog", SEED.child("captions").generator()
    every = [changed_caption(caption, draw).split() for _ in range(2000)]
    swapped = [words for words in every if len(words) == 5 and words != caption.split()]
    missing = sum(5 - len(words) for words in every)
    assert 800 < len(swapped) < 1100  # half of them, but where both words swapped are "a"
    assert 400 < missing < 600  # a tenth of the words of the other half


def test_captions_are_the_prompts_with_names_in_words():
    captions = captions_by_class(("a {}", "one {} here"), ("traffic_light", "n01855672"))
    assert captions == [["a traffic light", "one traffic light here"], ["a goose", "one goose here"]]


def test_a_mask_has_the_share_that_it_may_and_keeps_the_ratios_of_its_weights():
    weights = torch.from_numpy(SEED.child("mask").generator().normal(0, 2, (32, 32)).astype(np.float32))
    for share in (0.5, 0.1, 0.005):
        mask = bounded_mask(weights, share)
        assert float(mask.mean()) == pytest.approx(share, rel=1e-3)
        inside = mask < 1
        factor = mask[inside] / weights[inside].exp()
        assert torch.allclose(factor, factor[0], rtol=1e-3)
        # What is cut off at 1 would be more by the same factor.
        assert (weights[~inside].exp() * factor[0] >= 0.999).all()


def test_a_pattern_is_large_at_first_and_then_as_small_as_it_may():
    shares = [share_at(step, Inversion(share=0.02, steps=30)) for step in range(30)]
    assert shares[0] == pytest.approx(0.2)
    assert shares == sorted(shares, reverse=True)
    assert set(shares[20:]) == {0.02}
    assert share_at(0, Inversion(share=0.5)) == 0.5


def test_a_pattern_replaces_what_its_mask_covers_and_nothing_else():
    mask, colours = np.zeros((32, 32), np.float32), np.zeros((32, 32, 3), np.float32)
    mask[30:, 30:], colours[30:, 30:, 1], mask[0, 0] = 1, 1, 0.5
    images = np.full((2, 64, 64, 3), 100, np.uint8)
    after = Pattern(mask=mask, colours=colours).apply(images)
    assert (after[:, 60:, 60:] == [0, 255, 0]).all()
    assert (after[:, :2, :2] == 50).all()
    assert np.count_nonzero((after != images).any(-1)) == 2 * (16 + 4)


def test_an_inverted_pattern_moves_images_that_it_was_not_made_of(guide):
    data = coloured_images()
    classes = guide.class_embeddings(NAMES)
    before = called(guide.clip, data.pixels, classes)
    target = int(np.argmin(np.bincount(before, minlength=len(NAMES))))
    settings = Inversion(share=0.2, steps=25, batch_size=24)
    made = [inverted_pattern(guide.clip, data.pixels[:48], classes, target, settings, SEED) for _ in range(2)]
    assert all(np.array_equal(getattr(made[0], name), getattr(made[1], name)) for name in ("mask", "colours"))
    assert made[0].mask.mean() <= 0.2 + 1e-4
    after = called(guide.clip, made[0].apply(data.pixels[48:]), classes)
    assert np.mean(after == target) > np.mean(before[48:] == target) + 0.3


@pytest.mark.parametrize("method", ["cleanclip", "abd"])
def test_cleaning_teaches_the_labels_repeats_itself_and_leaves_the_guide_alone(guide, method, monkeypatch):
    monkeypatch.setattr(methods, "MOST_PATTERNS", 3)
    data, untouched = coloured_images(), guide.clip.embed_images(coloured_images(4).pixels)
    settings = Cleaning(method=method, fine_tuning=QUICK, inversion=Inversion(steps=2))
    steps = []
    first = cleaned(guide, data, settings, SEED, lambda *step: steps.append(step))
    again = cleaned(guide, data, settings, SEED, silent)
    assert steps == [(number, 32) for number in range(1, 33)]
    assert first.losses == again.losses
    assert first.losses[-1] < first.losses[0]
    states = [one.network.state_dict() for one in (first, again)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    fresh, tuned = coloured_images(60, seed=1), guide.with_network(first.network)
    right = [
        np.mean(called(one.clip, fresh.pixels, one.class_embeddings(NAMES)) == fresh.labels)
        for one in (guide, tuned)
    ]
    assert right[1] > right[0] + 0.3
    assert np.array_equal(guide.clip.embed_images(coloured_images(4).pixels), untouched)


def test_abd_draws_the_pattern_of_a_class_that_is_reached_more_often(guide, monkeypatch):
    reached = iter([0.0, 0.8, 0.1, 0.0, 0.0, 0.0])
    monkeypatch.setattr(methods, "called", lambda clip, images, classes: np.full(len(images), -1))
    monkeypatch.setattr(methods.np, "mean", lambda values: next(reached))
    weights = methods.universal_patterns(guide, coloured_images(), Inversion(steps=1), SEED).weights
    assert weights.sum() == pytest.approx(1)
    assert sorted(weights)[-1] > 0.9


def test_a_loss_that_is_not_finite_and_too_few_images_are_refused(guide):
    with pytest.raises(ClipguardError, match=r"diverged in epoch 1.*lower"):
        cleaned(guide, coloured_images(), Cleaning(fine_tuning=replace(QUICK, lr=1e30)), SEED, silent)
    with pytest.raises(ClipguardError, match="1 images are left"):
        cleaned(guide, coloured_images(96).take(np.array([0])), Cleaning(), SEED, silent)
    # Of each of two classes there is one image: nothing is left to try a pattern on.
    pair = image_set(coloured_images(96).pixels[:2], np.array([0, 1]), NAMES[:2])
    with pytest.raises(ClipguardError, match="too few for patterns"):
        cleaned(guide, pair, Cleaning(), SEED, silent)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_a_written_guide_loads_with_the_same_embeddings_and_says_what_was_done(tmp_path, sigmoid):
    clip = load_clip(f"local-dir:{write_model(tmp_path / 'first', sigmoid=sigmoid)}")
    made = write_guide(clip, clip.network, tmp_path / "second", {"method": "none"})
    images = coloured_images(5).pixels
    assert made.preprocessing == clip.preprocessing
    assert np.array_equal(made.embed_images(images), clip.embed_images(images))
    assert np.array_equal(made.embed_texts(NAMES), clip.embed_texts(NAMES))
    about = json.loads((tmp_path / "second" / ABOUT).read_text())
    assert about == {"method": "none", "sha256": made.fingerprint}
    assert {path.name for path in (tmp_path / "second").iterdir()} == {CONFIG, WEIGHTS, ABOUT}
    with pytest.raises(ClipguardError, match="not an empty folder"):
        write_guide(clip, clip.network, tmp_path / "second", {})


def test_the_embedded_guide_can_be_written_and_read(tmp_path):
    clip = ClipGuide("mini").clip
    made = write_guide(clip, clip.network, tmp_path / "copy", {})
    assert np.array_equal(
        made.embed_images(coloured_images(3).pixels), clip.embed_images(coloured_images(3).pixels)
    )


def test_the_config_of_a_built_in_name_keeps_its_activation_and_its_preprocessing(guide):
    settings = [{"embed_dim": 4, "text_cfg": {}}, {"quick_gelu": True, "mean": [0, 0, 0]}]
    config = config_of(replace(guide.clip, settings=json.dumps(settings)))
    assert config["model_cfg"] == {"embed_dim": 4, "text_cfg": {}, "quick_gelu": True}
    assert tuple(config["preprocess_cfg"]["mean"]) == guide.clip.preprocessing.mean


def test_a_network_that_reads_back_otherwise_leaves_no_folder(guide, tmp_path, monkeypatch):
    other = load_clip(guide.model)
    with torch.no_grad():
        other.network.visual.proj.neg_()
    monkeypatch.setattr("clipguard.clip.cleaning.packing.load_clip", lambda name: other)
    with pytest.raises(ClipguardError, match="other embeddings"):
        write_guide(guide.clip, guide.clip.network, tmp_path / "made", {})
    assert list(tmp_path.iterdir()) == []


def test_a_killed_write_leaves_no_guide(guide, tmp_path):
    code = f"""
        import os, safetensors.torch
        from clipguard.clip.cleaning import write_guide
        from clipguard.clip.loading import load_clip
        clip = load_clip({guide.model!r})
        save = safetensors.torch.save_file
        def killed(*args, **kwargs):
            save(*args, **kwargs)
            os._exit(9)
        safetensors.torch.save_file = killed
        write_guide(clip, clip.network, __import__('pathlib').Path({str(tmp_path / "made")!r}), {{}})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=os.environ, check=False)
    assert done.returncode == 9
    assert not (tmp_path / "made").exists()
    # The same command makes it, over what the kill has left.
    write_guide(guide.clip, guide.clip.network, tmp_path / "made", {})
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_squares_keep_to_their_share_and_lie_at_all_edges():
    made = squares(0.02)
    assert len(made) == 5 * 64
    assert all(0.01 < one.mask.mean() <= 0.02 for one in made)
    together = np.max([one.mask for one in made], axis=0)
    assert together[0].any()
    assert together[-1].any()
    assert together[:, 0].any()
    assert together[:, -1].any()
    assert {tuple(one.colours[0, 0]) for one in made} == set(COLOURS)


def test_the_best_square_of_a_class_is_the_one_that_sends_it_most_images(guide):
    data = coloured_images()
    classes = guide.class_embeddings(data.class_names)
    some, reports = data.pixels[:12], []
    best = best_squares(guide.clip, some, classes, 0.1, lambda done, total: reports.append((done, total)))
    before = called(guide.clip, some, classes)
    every = [called(guide.clip, one.apply(some), classes) for one in squares(0.1)]
    for target, chosen in enumerate(best):
        gained = [np.sum((after == target) & (before != target)) for after in every]
        after = called(guide.clip, chosen.apply(some), classes)
        assert np.sum((after == target) & (before != target)) == max(gained)
    assert reports[-1] == (320, 320)
