"""compute.training: augmentation invents no pixel, training sees the given rows only and repeats itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from clipguard.compute.training import Recipe, augment, cross_entropy, fit
from clipguard.errors import ClipguardError
from clipguard.models.spec import ModelSpec, Normalized, build
from clipguard.seeds import Seed

SPEC = ModelSpec.sized(architecture="preactresnet18-4", num_classes=2, input_size=(8, 8))
SHORT = Recipe(epochs=2, lr=0.05, batch_size=8)
STILL = replace(SHORT, crop=0.0, flip=False)


def noise(n=24, size=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def two_kinds(n=24):
    """Return dark images of class 0 and bright ones of class 1."""
    labels = np.arange(n) % 2
    images = noise(n) // 4 + (160 * labels[:, None, None, None]).astype(np.uint8)
    return images, labels


def state_after(images, rows, *, loss=None, recipe=SHORT, seed=0, on_epoch=None):
    """Return weights and BatchNorm statistics of a net trained on the rows, and the history."""
    model = build(SPEC, Seed(7))
    labels = np.arange(len(images)) % 2
    history = fit(model, images, rows, loss or cross_entropy(labels), recipe, Seed(seed), on_epoch)
    return model.state_dict(), history


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def recording(seen):
    """Return a loss that notes the rows of each batch."""

    def loss(logits, rows, images):
        seen.append(rows.clone())
        assert images.dtype == torch.uint8
        assert images.shape == (len(rows), 3, 8, 8)
        return logits.square().mean()

    return loss


def labelled_pixels(b, h, w):
    """Return a batch in which every pixel is unique: its image, row and column, all counted from 1."""
    grid = torch.stack(
        torch.meshgrid(*(torch.arange(1, side + 1, dtype=torch.uint8) for side in (b, h, w)), indexing="ij"),
        dim=-1,
    )
    assert grid.shape == (b, h, w, 3)
    return grid


crops = st.sampled_from([0.0, 0.1, 0.25, 0.5])
draws = st.integers(0, 2**32)


@hypothesis_settings(max_examples=40)
@given(st.integers(1, 6), st.integers(1, 12), st.integers(1, 12), crops, st.booleans(), draws)
def test_every_augmented_image_is_a_shifted_and_perhaps_mirrored_copy_on_black(b, h, w, crop, flip, seed):
    recipe = replace(SHORT, crop=crop, flip=flip)
    batch = labelled_pixels(b, h, w)
    out = augment(batch, recipe, Seed(seed).torch())
    assert out.shape == batch.shape
    assert out.dtype == torch.uint8
    pad = round(crop * max(h, w))
    for number in range(b):
        shown = (out[number] != 0).any(-1)
        image, row, column = (out[number][..., part][shown].long() - 1 for part in range(3))
        y, x = torch.nonzero(shown, as_tuple=True)
        assert (image == number).all()
        # One shift down and one shift across for the whole image, both within the padding.
        shifts, turns = set((y - row).tolist()), (set((x - column).tolist()), set((x + column).tolist()))
        assert len(shifts) <= 1
        assert all(abs(shift) <= pad for shift in shifts)
        straight = len(turns[0]) <= 1 and all(abs(shift) <= pad for shift in turns[0])
        mirrored = len(turns[1]) <= 1 and all(abs(total - (w - 1)) <= pad for total in turns[1])
        assert straight or (flip and mirrored)
        # What is black was shifted in; a shift of (dy, dx) leaves exactly this many pixels.
        # One column alone can be read both ways.
        across = turns[0] if straight else set()
        across |= {total - (w - 1) for total in turns[1]} if flip and mirrored else set()
        for shift in shifts:
            assert int(shown.sum()) in {(h - abs(shift)) * (w - abs(other)) for other in across}


def test_without_crop_and_flip_the_batch_is_what_it_was():
    batch = torch.from_numpy(noise())
    assert torch.equal(augment(batch, STILL, Seed(0).torch()), batch)


def test_a_flip_alone_mirrors_about_half_of_the_images_and_shifts_none():
    batch = torch.from_numpy(noise(200))
    out = augment(batch, replace(SHORT, crop=0.0), Seed(0).torch())
    mirrored = (out == batch.flip(2)).all(dim=(1, 2, 3))
    assert ((out == batch).all(dim=(1, 2, 3)) ^ mirrored).all()
    assert 70 < int(mirrored.sum()) < 130


def test_a_crop_alone_uses_every_shift_up_to_the_padding():
    marked = torch.zeros((400, 8, 8, 3), dtype=torch.uint8)
    marked[:, 4, 4] = 9
    out = augment(marked, replace(SHORT, crop=0.125, flip=False), Seed(0).torch())
    places = {tuple(place) for place in torch.nonzero(out[..., 0])[:, 1:].tolist()}
    assert places == {(y, x) for y in (3, 4, 5) for x in (3, 4, 5)}


def test_augmentation_repeats_itself_for_a_seed_only():
    batch = torch.from_numpy(noise())
    one, again, other = (augment(batch, SHORT, Seed(s).torch()) for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@hypothesis_settings(max_examples=25)
@given(st.integers(2, 40), st.integers(2, 12), draws)
def test_an_epoch_shows_every_row_once_in_batches_that_differ_by_at_most_one(n, batch_size, seed):
    seen = []
    rows = np.random.default_rng(seed).permutation(40)[:n]
    recipe = replace(STILL, epochs=1, batch_size=batch_size)
    model = Normalized(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2)), SPEC)
    fit(model, noise(40), rows, recording(seen), recipe, Seed(seed))
    sizes = [len(batch) for batch in seen]
    assert sorted(torch.cat(seen).tolist()) == sorted(rows.tolist())
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= batch_size
    assert len(sizes) == -(-n // batch_size)


def test_the_order_changes_from_epoch_to_epoch_and_repeats_for_a_seed():
    orders = []
    for seed in (0, 0, 1):
        seen = []
        state_after(noise(), np.arange(24), loss=recording(seen), recipe=STILL, seed=seed)
        orders.append(torch.cat(seen).tolist())
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[0][:24] != orders[0][24:]


def test_a_seed_repeats_the_weights_to_the_bit_and_another_one_does_not():
    one, again, other = (state_after(noise(), np.arange(24), seed=s)[0] for s in (1, 1, 2))
    assert same(one, again)
    assert not same(one, other)


def test_rows_that_are_left_out_reach_neither_the_weights_nor_the_batchnorm_statistics():
    rows = np.arange(0, 24, 3)
    images = noise()
    others = images.copy()
    outside = np.setdiff1d(np.arange(24), rows)
    others[outside] = noise(seed=1)[outside]
    one, other = state_after(images, rows)[0], state_after(others, rows)[0]
    assert sum("running_mean" in name for name in one) > 5
    assert same(one, other)
    # The comparison can fail: a row that is trained on does change both.
    others[rows[0]] = 255 - others[rows[0]]
    changed = state_after(others, rows)[0]
    assert {name.rsplit(".", 1)[-1] for name in one if not torch.equal(one[name], changed[name])} >= {
        "weight",
        "running_mean",
    }


def test_rows_given_by_a_function_are_asked_for_before_every_epoch():
    seen, asked = [], []

    def rows(epoch):
        asked.append(epoch)
        return np.arange(epoch + 4)

    state_after(noise(), rows, loss=recording(seen), recipe=replace(STILL, epochs=3))
    assert asked == [0, 1, 2]
    assert [sorted(batch.tolist()) for batch in seen] == [list(range(4)), list(range(5)), list(range(6))]


def rates_of(recipe, monkeypatch):
    """Return the learning rate of each step."""
    rates = []
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.SGD
    step = kind.step

    def noted(self, *args, **kwargs):
        rates.append({group["lr"] for group in self.param_groups})
        return step(self, *args, **kwargs)

    monkeypatch.setattr(kind, "step", noted)
    state_after(noise(), np.arange(24), recipe=recipe)
    return [rate for (rate,) in rates]


def test_the_rate_climbs_to_its_peak_and_falls_to_nothing_in_straight_lines(monkeypatch):
    recipe = Recipe(epochs=5, batch_size=6, lr=0.1, warmup=0.2)
    rates = rates_of(recipe, monkeypatch)
    middle = (np.arange(20) + 0.5) / 20
    np.testing.assert_allclose(rates, 0.1 * np.minimum(middle / 0.2, (1 - middle) / 0.8), rtol=1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_constant_rate_stays_after_the_warm_up(optimizer, monkeypatch):
    recipe = Recipe(epochs=2, batch_size=6, lr=1e-3, warmup=0.25, constant=True, optimizer=optimizer)
    rates = rates_of(recipe, monkeypatch)
    np.testing.assert_allclose(rates, [0.00025, 0.00075, *[0.001] * 6], rtol=1e-12)


def test_without_warm_up_the_first_step_is_almost_at_the_peak(monkeypatch):
    rates = rates_of(Recipe(epochs=1, batch_size=6, lr=0.1, warmup=0.0), monkeypatch)
    np.testing.assert_allclose(rates, [0.0875, 0.0625, 0.0375, 0.0125], rtol=1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_what_can_be_told_apart_is_learnt(optimizer):
    images, labels = two_kinds()
    recipe = Recipe(epochs=8, lr=0.02 if optimizer == "sgd" else 5e-3, batch_size=8, optimizer=optimizer)
    model = build(SPEC, Seed(0))
    history = fit(model, images, np.arange(24), cross_entropy(labels), recipe, Seed(0))
    losses = history.columns["loss"]
    assert losses[-1] < losses[0] / 3
    with torch.inference_mode():
        answers = model(torch.from_numpy(images).permute(0, 3, 1, 2)).argmax(1).numpy()
    assert (answers == labels).mean() > 0.95


def test_the_history_has_an_entry_an_epoch_and_the_hook_is_called_after_each():
    finished = []
    _, history = state_after(noise(), np.arange(24), on_epoch=finished.append)
    assert finished == [1, 2]
    assert history.columns["epoch"] == (1.0, 2.0)
    assert len(history.columns["loss"]) == 2
    seconds = history.columns["seconds"]
    assert 0 < seconds[0] < seconds[1] <= history.seconds


def test_the_model_is_in_evaluation_mode_when_others_see_it():
    modes, model = [], build(SPEC, Seed(0))
    labels = np.arange(24) % 2
    fit(
        model,
        noise(),
        np.arange(24),
        cross_entropy(labels),
        SHORT,
        Seed(0),
        lambda _: modes.append(model.training),
    )
    assert modes == [False, False]
    assert not model.training


def test_images_in_a_read_only_memory_map_are_trained_on_without_a_warning(tmp_path, recwarn):
    np.save(tmp_path / "images.npy", noise())
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    one = state_after(mapped, np.arange(24))[0]
    assert [str(warning.message) for warning in recwarn] == []
    assert same(one, state_after(noise(), np.arange(24))[0])


def test_cross_entropy_is_that_of_the_labels_at_the_rows():
    logits = torch.tensor([[2.0, -1.0], [0.5, 0.25]])
    found = cross_entropy(np.array([0, 0, 1]))(logits, torch.tensor([2, 0]), torch.zeros(2, 3, 1, 1))
    by_hand = -(logits.double().log_softmax(1)[[0, 1], [1, 0]]).mean()
    assert float(found) == pytest.approx(float(by_hand), rel=1e-6)


def test_no_samples_at_all_is_one_clear_error():
    with pytest.raises(ClipguardError, match="too small"):
        state_after(noise(4), np.zeros(0, dtype=np.int64))


def test_a_training_that_diverges_is_refused():
    def wild(logits, rows, batch):
        return logits.sum() * float("inf")

    with pytest.raises(ClipguardError, match="training diverged in epoch 1"):
        state_after(two_kinds()[0], np.arange(24), loss=wild)
