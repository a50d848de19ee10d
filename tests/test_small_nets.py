"""compute.small_nets: who is trained on what, and who scores whom."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from clipguard.compute import small_nets
from clipguard.compute.inference import classifier_logits
from clipguard.compute.small_nets import SmallNetConfig, binary_loss, continued, train_small_nets
from clipguard.compute.training import cross_entropy
from clipguard.runs import ShardedArray, write_array
from clipguard.seeds import Seed
from clipguard.types import Rows

N = 30
TINY = SmallNetConfig(
    architecture="preactresnet18-4", epochs=2, batch_size=16, optimizer="sgd", lr=0.05, schedule="one-cycle"
)
draws = st.integers(0, 2**32)


def noise(n=N, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)


def everyone(n=N):
    return np.ones(n, dtype=bool)


def logits_of(config, trainable=None, seed=0, labels=None, images=None, on_epoch=None):
    given_labels = np.arange(N) % 3 if labels is None else labels
    return train_small_nets(
        config,
        noise() if images is None else images,
        3,
        cross_entropy(given_labels),
        everyone() if trainable is None else trainable,
        Seed(seed),
        on_epoch,
    ).logits[:]


def record(monkeypatch):
    """Return a list that fills with (rows trained on, rows scored) of each net; nothing is trained."""
    nets, models, images = [], [], noise()

    def no_fit(model, given_images, rows, *_, **named):
        nets.append((set(rows.tolist()), set()))
        models.append(model)

    def constant(model, given_images):
        number = next(n for n, known in enumerate(models) if known is model)
        scored = {int(np.flatnonzero((images == image).all((1, 2, 3)))[0]) for image in given_images}
        nets[number][1].update(scored)
        return np.full((len(given_images), 3), number + 1, dtype=np.float32)

    monkeypatch.setattr(small_nets, "fit", no_fit)
    monkeypatch.setattr(small_nets, "classifier_logits", constant)
    return nets


@hypothesis_settings(max_examples=30)
@given(st.integers(2, 5), st.integers(1, 3), st.lists(st.booleans(), min_size=N, max_size=N), draws)
def test_out_of_fold_no_sample_is_scored_by_a_net_that_saw_it(folds, runs, mask, seed):
    with pytest.MonkeyPatch.context() as patch:
        nets = record(patch)
        trainable = np.array(mask)
        logits = logits_of(replace(TINY, folds=folds, runs=runs), trainable, seed)
    expected = set(np.flatnonzero(trainable).tolist())
    assert len(nets) == folds * runs
    for trained, scored in nets:
        assert not trained & scored
        assert trained == expected - scored
    for run in range(runs):
        scored_by_run = [scored for _, scored in nets[run * folds : (run + 1) * folds]]
        assert sorted(row for scored in scored_by_run for row in scored) == list(range(N))
        assert max(map(len, scored_by_run)) - min(map(len, scored_by_run)) <= 1
    assert (logits > 0).all()


def test_within_one_fold_the_trainable_rows_are_learnt_and_all_rows_are_scored(monkeypatch):
    nets = record(monkeypatch)
    trainable = np.arange(N) % 4 != 0
    logits_of(TINY, trainable)
    assert nets == [(set(np.flatnonzero(trainable).tolist()), set(range(N)))]


def test_several_runs_are_averaged(monkeypatch):
    record(monkeypatch)
    assert (logits_of(replace(TINY, runs=3)) == 2.0).all()


def test_random_labels_are_memorised_in_the_fold_and_not_out_of_it():
    labels = np.random.default_rng(0).integers(0, 3, N)
    longer = replace(TINY, epochs=30, batch_size=30, lr=0.03)
    in_fold = logits_of(longer, labels=labels).argmax(1) == labels
    out_of_fold = logits_of(replace(longer, folds=3), labels=labels).argmax(1) == labels
    assert in_fold.mean() > 0.9
    # Chance is 1/3 with a standard error of 9 points.
    assert out_of_fold.mean() < 0.65


def test_images_that_are_not_trainable_do_not_change_the_scores_of_others():
    trainable = np.arange(N) % 5 != 0
    other = np.where(trainable[:, None, None, None], noise(), noise(seed=1))
    one, two = logits_of(TINY, trainable), logits_of(TINY, trainable, images=other)
    assert np.array_equal(one[trainable], two[trainable])
    assert not np.array_equal(one[~trainable], two[~trainable])


@pytest.mark.parametrize("config", [TINY, replace(TINY, folds=2), replace(TINY, runs=2)])
def test_a_seed_repeats_the_logits_to_the_bit_and_another_one_does_not(config):
    one, again, other = (logits_of(config, seed=s) for s in (1, 1, 2))
    assert one.shape == (N, 3)
    assert one.dtype == np.float32
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_the_runs_of_a_config_differ():
    one, two = logits_of(TINY), logits_of(replace(TINY, runs=2))
    assert not np.allclose(one, two)


def test_the_hook_hears_every_epoch_of_every_net():
    epochs = []
    logits_of(replace(TINY, runs=2, folds=2), on_epoch=epochs.append)
    assert epochs == [1, 2] * 4


def test_the_binary_loss_is_the_mean_weighted_logistic_loss_of_one_logit():
    logits = torch.tensor([[0.5], [-2.0], [3.0]])
    rows = torch.tensor([3, 0, 1])
    weights = np.array([1.0, 0.5, 9.0, 2.0])
    loss = binary_loss(np.array([True, False, True, False]), weights)(logits, rows, torch.zeros(3, 3, 1, 1))
    signs = np.array([-1.0, 1.0, -1.0])
    each = np.log1p(np.exp(-signs * logits[:, 0].numpy()))
    assert float(loss) == pytest.approx((each * weights[[3, 0, 1]]).mean(), rel=1e-6)


@given(st.integers(1, 400), st.integers(1, 4), st.integers(0, 200), st.integers(1, 8), st.integers(1, 50))
def test_a_small_set_gets_just_the_epochs_that_make_the_fewest_steps(n, folds, fewest, epochs, batch_size):
    config = replace(TINY, epochs=epochs, batch_size=batch_size, folds=folds, fewest_steps=fewest)
    of_a_net = n if folds == 1 else n * (folds - 1) // folds
    steps = max(1, -(-of_a_net // batch_size))
    total = config.total_epochs(n)
    assert total >= epochs
    assert total * steps >= fewest
    assert total == epochs or (total - 1) * steps < fewest
    assert config.recipe(n).epochs == total


@pytest.mark.parametrize("folds", [1, 2])
def test_each_net_is_trained_for_the_epochs_of_its_config(folds):
    epochs = []
    config = replace(TINY, folds=folds, fewest_steps=7)
    logits_of(config, on_epoch=epochs.append)
    # 30 samples in batches of 16: two steps an epoch, or one where half of them are left out.
    assert epochs == ([1, 2, 3, 4] if folds == 1 else [1, 2, 3, 4, 5, 6, 7] * 2)


class Tracker(torch.optim.Optimizer):
    """An optimizer that learns nothing and notes the learning rate of each step."""

    def __init__(self, parameters, lr, **_):
        super().__init__(parameters, {"lr": lr})
        self.rates = []

    def step(self):
        self.rates.append(self.param_groups[0]["lr"])


def tracked(monkeypatch, config):
    """Return the optimizers of a training, and the images of its batches in the order of rows."""
    optimizers, batches = [], {}

    def track(*arguments, **settings):
        optimizers.append(Tracker(*arguments, **settings))
        return optimizers[-1]

    monkeypatch.setattr(torch.optim, "SGD", track)
    plain = cross_entropy(np.arange(N) % 3)

    def loss(logits, rows, batch):
        batches.update(zip(rows.tolist(), batch, strict=True))
        return plain(logits, rows, batch)

    train_small_nets(config, noise(), 3, loss, everyone(), Seed(0))
    return optimizers, torch.stack([batches[row] for row in range(N)])


@pytest.mark.parametrize("schedule", ["constant", "one-cycle"])
def test_the_rate_stays_at_its_peak_or_has_it_after_a_fifth_of_the_steps(monkeypatch, schedule):
    (optimizer,), _ = tracked(monkeypatch, replace(TINY, epochs=10, schedule=schedule))
    if schedule == "constant":
        assert optimizer.rates == [TINY.lr] * 20
        return
    rising, falling = np.diff(optimizer.rates[:4]), np.diff(optimizer.rates[4:])
    assert rising == pytest.approx(TINY.lr / 4)
    assert falling == pytest.approx(-TINY.lr / 16)
    assert optimizer.rates[3:5] == pytest.approx([TINY.lr * 7 / 8, TINY.lr * 31 / 32])


def test_small_nets_see_the_images_as_they_are(monkeypatch):
    # Augmentation would smear a trigger in the corner.
    _, images = tracked(monkeypatch, TINY)
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), noise())


def test_a_training_goes_on_for_just_the_given_epochs_at_half_the_rate(monkeypatch):
    config = replace(TINY, schedule="constant", fewest_steps=50)
    (optimizer,), _ = tracked(monkeypatch, continued(config, 3))
    assert optimizer.rates == [TINY.lr / 2] * 6


def test_a_training_goes_on_from_given_nets_with_the_same_fold_left_out(monkeypatch):
    config = replace(TINY, architecture="shallow-4", folds=2)
    loss, images = cross_entropy(np.arange(N) % 3), noise()
    first = train_small_nets(config, images, 3, loss, everyone(), Seed(0))
    assert len(first.nets) == 2
    weights = [{name: value.clone() for name, value in net.state_dict().items()} for net in first.nets]
    second = train_small_nets(config, images, 3, loss, everyone(), Seed(0), start=first.nets)
    assert not np.array_equal(first.logits[:], second.logits[:])
    for net, kept in zip(first.nets, weights, strict=True):
        assert all(bool((net.state_dict()[name] == value).all()) for name, value in kept.items())
    nets = record(monkeypatch)
    for start in ((), first.nets):
        train_small_nets(config, images, 3, loss, everyone(), Seed(0), start=start).logits[:]
    assert nets[:2] == nets[2:]
    assert all(not trained & scored for trained, scored in nets)


@pytest.mark.parametrize("config", [TINY, replace(TINY, folds=3, runs=2)], ids=["one net", "six nets"])
def test_logits_of_some_images_are_those_that_they_have_among_all(config, tmp_path):
    given, images = cross_entropy(np.arange(N) % 3), noise()
    for number in range(3):
        write_array(tmp_path / f"{number}.npy", images[10 * number : 10 * number + 10])
    files = ShardedArray([tmp_path / f"{number}.npy" for number in range(3)])
    in_memory, in_files = (
        train_small_nets(config, rows, 3, given, everyone(), Seed(0)).logits for rows in (images, files)
    )
    assert isinstance(in_memory, Rows)
    assert in_memory.shape == (N, 3)
    assert np.array_equal(in_memory[:], in_files[:])
    rows = np.random.default_rng(0).permutation(N)[:11]
    np.testing.assert_allclose(in_files[rows], in_memory[:][rows], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(in_files[7:19], in_memory[:][7:19], rtol=1e-5, atol=1e-6)


def test_images_are_read_in_bounded_pieces_whose_scores_are_those_of_one_pass(monkeypatch):
    trained = train_small_nets(
        replace(TINY, folds=2), noise(), 3, cross_entropy(np.arange(N) % 3), everyone(), Seed(0)
    )
    whole, pieces = trained.logits[:], []
    monkeypatch.setattr(small_nets, "_SCORED", 4)

    def recorded(model, images):
        pieces.append(len(images))
        return classifier_logits(model, images)

    monkeypatch.setattr(small_nets, "classifier_logits", recorded)
    np.testing.assert_allclose(trained.logits[:], whole, rtol=1e-5, atol=1e-6)
    assert max(pieces) == 4
    assert sum(pieces) == N


def test_the_order_in_which_nets_are_trained_is_free(monkeypatch):
    config, given = replace(TINY, folds=2, runs=2), cross_entropy(np.arange(N) % 3)
    forth = train_small_nets(config, noise(), 3, given, everyone(), Seed(0))
    monkeypatch.setattr(small_nets, "in_lanes", lambda tasks: [task() for task in tasks[::-1]][::-1])
    back = train_small_nets(config, noise(), 3, given, everyone(), Seed(0))
    assert np.array_equal(forth.logits[:], back.logits[:])
