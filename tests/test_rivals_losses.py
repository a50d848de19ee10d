"""The losses and gradients of rivals, against slow or exact computations that share no code with them."""

import copy
from itertools import product

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from clipguard.compute.training import cross_entropy as loss_of
from clipguard.defenses.rivals.block_outputs import attention_map
from clipguard.defenses.rivals.distillation import attention_loss
from clipguard.defenses.rivals.hypergradient import hypergradient
from clipguard.defenses.rivals.neuron_pruning import masked_logits, prune, scaled_layers
from clipguard.defenses.rivals.sam import at_weights, sharpness_aware
from clipguard.defenses.rivals.sharpness_aware_tuning import balanced_rows
from clipguard.defenses.rivals.thresholds import strongest_kept
from clipguard.models.spec import ModelSpec, build
from clipguard.seeds import Seed

SPEC = ModelSpec.sized(architecture="shallow-4", num_classes=3, input_size=(16, 16))
BATCH = torch.randint(256, (12, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
LABELS = np.arange(12) % 3
ROWS = torch.arange(12)


@pytest.fixture
def model():
    built = build(SPEC, Seed(5))
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in built.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=draw))
    return built.train()


def test_sharp_loss_has_the_gradient_of_a_model_whose_weights_were_moved_by_hand(model):
    reference = copy.deepcopy(model)
    plain, rho = loss_of(LABELS), 0.5
    sharpness_aware(model, plain, rho)(model(BATCH), ROWS, BATCH).backward()

    cross_entropy(reference(BATCH), torch.tensor(LABELS)).backward()
    weights = [w.detach().numpy().astype(np.float64) for w in reference.parameters()]
    slopes = [w.grad.numpy().astype(np.float64) for w in reference.parameters()]
    length = np.sqrt(sum(((np.abs(w) * g) ** 2).sum() for w, g in zip(weights, slopes, strict=True)))
    moved = copy.deepcopy(reference)
    with torch.no_grad():
        for weight, w, g in zip(moved.parameters(), weights, slopes, strict=True):
            weight.copy_(torch.tensor(w + rho * w**2 * g / length))
    moved.zero_grad()
    cross_entropy(moved(BATCH), torch.tensor(LABELS)).backward()
    for own, expected in zip(model.parameters(), moved.parameters(), strict=True):
        torch.testing.assert_close(own.grad, expected.grad, atol=1e-5, rtol=1e-3)
    # And so different from the gradient without the adversary that the comparison means something.
    assert not torch.allclose(model.network.head.weight.grad, reference.network.head.weight.grad, atol=1e-3)


def test_batchnorm_follows_the_first_pass_of_a_sharp_step_only(model):
    once = copy.deepcopy(model)
    once(BATCH)
    sharpness_aware(model, loss_of(LABELS), 2.0)(model(BATCH), ROWS, BATCH).backward()
    for own, expected in zip(model.buffers(), once.buffers(), strict=True):
        assert own.equal(expected)


def test_the_hypergradient_is_the_slope_of_the_outer_loss_at_the_inner_optimum():
    draw = np.random.default_rng(3)
    root, coupling = draw.normal(size=(4, 4)), draw.normal(size=(4, 3))
    curvature, goal, pull = root @ root.T / 4 + np.eye(4), draw.normal(size=4), draw.normal(size=(4, 3))

    def outer_at(w):
        d = -np.linalg.solve(curvature, coupling @ w)
        return ((d - goal) ** 2).sum() + d @ pull @ w + (w**3).sum()

    w = draw.normal(size=3)
    step = 1e-5
    expected = [(outer_at(w + step * e) - outer_at(w - step * e)) / (2 * step) for e in np.eye(3)]

    a, b, c, p = (torch.tensor(x) for x in (curvature, coupling, goal, pull))
    weights = torch.tensor(w, requires_grad=True)
    noise = torch.tensor(-np.linalg.solve(curvature, coupling @ w))
    (slope,) = hypergradient(
        lambda d: d @ a @ d / 2 + d @ b @ weights,
        lambda d: ((d - c) ** 2).sum() + d @ p @ weights + (weights**3).sum(),
        noise,
        [weights],
        steps=500,
        lr=0.1,
    )
    np.testing.assert_allclose(slope.numpy(), expected, rtol=1e-5)


def test_five_steps_of_a_hypergradient_are_five_terms_of_the_series():
    weights, noise = torch.tensor([2.0], requires_grad=True), torch.tensor([1.0])
    # Inner slope 3 d + w, outer slope 4 in d: the map is d - 0.1 (3 d + w).
    (slope,) = hypergradient(
        lambda d: (1.5 * d**2 + d * weights).sum(), lambda d: 4 * d.sum(), noise, [weights], steps=5, lr=0.1
    )
    assert slope.item() == pytest.approx(-0.1 * 4 * sum(0.7**power for power in range(5)))


def test_attention_is_the_energy_of_each_place_and_its_distance_is_a_mean_over_places():
    draw = np.random.default_rng(0)
    student, teacher = draw.normal(size=(2, 2, 5, 3, 4))
    expected, energies = 0.0, []
    for maps in (student, teacher):
        energy = np.zeros((2, 12))
        for b, c, y, x in product(range(2), range(5), range(3), range(4)):
            energy[b, 4 * y + x] += maps[b, c, y, x] ** 2
        energies.append(energy / np.sqrt((energy**2).sum(1, keepdims=True)))
    for b, place in product(range(2), range(12)):
        expected += (energies[0][b, place] - energies[1][b, place]) ** 2 / 24
    ours = attention_loss(torch.tensor(student), torch.tensor(teacher), (30, 40))
    assert ours.item() == pytest.approx(expected, rel=1e-5)


def test_attention_of_maps_with_channels_last_and_of_tokens_is_that_of_the_same_numbers():
    maps = torch.rand(2, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    usual = attention_map(maps, 32, 32)
    assert usual.shape == (2, 16)
    torch.testing.assert_close(attention_map(maps.permute(0, 2, 3, 1), 32, 32), usual)
    torch.testing.assert_close(attention_map(maps.flatten(2).mT, 32, 32), usual)


def test_masked_logits_are_those_of_a_model_whose_scales_and_shifts_were_changed_by_hand(model):
    draw = torch.Generator().manual_seed(4)
    names = scaled_layers(model)
    assert names == ["network.features.1", "network.features.4", "network.features.7"]
    sizes = {name: model.get_submodule(name).num_features for name in names}
    masks = {name: torch.rand(size, generator=draw) for name, size in sizes.items()}
    noise = {name: tuple(torch.rand(2, size, generator=draw) - 0.5) for name, size in sizes.items()}
    by_hand = copy.deepcopy(model)
    for name in names:
        layer = by_hand.get_submodule(name)
        for channel in range(sizes[name]):
            layer.weight.data[channel] *= masks[name][channel] + noise[name][0][channel]
            layer.bias.data[channel] *= 1 + noise[name][1][channel]
    before = copy.deepcopy(model.state_dict())
    torch.testing.assert_close(masked_logits(model, masks, noise, BATCH), by_hand(BATCH))
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_a_pruned_channel_says_the_same_of_every_image(model):
    name = "network.features.4"
    masks = {name: torch.tensor([0.9, 0.2, 0.5, 0.1])}
    assert prune(model, masks, 0.2) == 2
    outputs = []
    model.get_submodule(name).register_forward_hook(lambda _, __, output: outputs.append(output))
    model.eval()(BATCH)
    spread = outputs[0].std((0, 2, 3))
    assert (spread > 0).tolist() == [True, False, True, False]


def test_other_weights_leave_a_model_and_its_statistics_as_they_are(model):
    before = copy.deepcopy(model.state_dict())
    at_weights(model, {"network.head.bias": torch.ones(3)}, BATCH)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("accuracies", "kept"),
    [((0.9, 0.85, 0.8), 3), ((0.9, 0.5, 0.9), 1), ((0.5, 0.9, 0.9), None), ((), None), ((0.8,), 1)],
)
def test_pruning_stops_before_accuracy_first_falls_below_the_floor(accuracies, kept):
    strengths = range(1, len(accuracies) + 1)
    assert strongest_kept(strengths, lambda strength: accuracies[strength - 1], 0.8) == kept


def test_balanced_rows_hold_each_class_equally_often_and_every_row_of_the_small_ones():
    labels = np.array([0] * 7 + [2] * 2 + [5] * 1)
    rows = balanced_rows(labels, Seed(1))
    assert np.bincount(labels[rows]).tolist() == [4, 0, 4, 0, 0, 4]
    assert set(rows[labels[rows] == 2]) == {7, 8}
    assert len(set(rows[labels[rows] == 0])) == 4
    assert not np.array_equal(rows, balanced_rows(labels, Seed(2)))
