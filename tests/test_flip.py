"""lab.attacks.flip, .step_matching: steps as torch takes them, labels that lower the matching loss."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clipguard.compute.training import Recipe
from clipguard.errors import ClipguardError
from clipguard.lab.attacks import attack_named, fit_attack, flip
from clipguard.lab.attacks.flip import FLIP
from clipguard.lab.attacks.step_matching import beginning, label_slope, matching_loss, sgd_step
from clipguard.models.spec import ModelSpec, build
from clipguard.seeds import Seed
from clipguard.types import image_set
from tiny_attacks import TRAINED, tiny_set

STEPS = Recipe(epochs=1, lr=0.1, weight_decay=5e-4)


def net():
    spec = ModelSpec.sized(architecture="shallow-4", num_classes=3, input_size=(16, 16))
    return build(spec, Seed(0)).train()


def batch(n=12, seed=0):
    return torch.from_numpy(tiny_set(n, seed=seed).images).permute(0, 3, 1, 2)


def test_steps_are_those_of_torchs_own_sgd():
    model, other = net(), net()
    labels = torch.arange(12) % 3
    optimizer = torch.optim.SGD(
        other.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=STEPS.weight_decay
    )
    now = beginning(model)
    for number in range(3):
        now = sgd_step(model, now, batch(seed=number), torch.eye(3)[labels], STEPS).detached()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(other(batch(seed=number)), labels).backward()
        optimizer.step()
    for name, value in other.network.named_parameters():
        assert torch.allclose(now.weights[name], value, atol=1e-6), name


def test_a_step_leaves_the_models_own_weights_as_they_were():
    model = net()
    before = {name: value.clone() for name, value in model.network.named_parameters()}
    sgd_step(model, beginning(model), batch(), torch.eye(3)[torch.arange(12) % 3], STEPS)
    assert all(torch.equal(before[name], value) for name, value in model.network.named_parameters())


def test_the_matching_loss_is_the_squared_distance_missed_over_that_moved():
    draw = np.random.default_rng(0)
    start, student, expert = (
        {name: torch.from_numpy(draw.normal(size=shape)) for name, shape in (("a", (2, 3)), ("b", (4,)))}
        for _ in range(3)
    )
    missed = moved = 0.0
    for name in ("a", "b"):
        for s, t, e in zip(
            start[name].flatten(), student[name].flatten(), expert[name].flatten(), strict=True
        ):
            missed += float(t - e) ** 2
            moved += float(s - e) ** 2
    assert float(matching_loss(start, student, expert)) == pytest.approx(missed / moved)
    assert float(matching_loss(start, expert, expert)) == 0
    assert float(matching_loss(start, start, expert)) == 1


def test_the_slope_in_the_labels_is_that_of_small_differences():
    model = net().double()
    start = beginning(model)
    expert = sgd_step(model, start, batch(seed=1), torch.eye(3)[torch.zeros(12, dtype=int)], STEPS).detached()
    labels = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(3), 12))

    def stepped(labels):
        return sgd_step(model, start, batch(), labels, STEPS).detached().weights

    slope = label_slope(model, start, batch(), stepped(labels), expert.weights, STEPS)
    width = 1e-4
    for row, label in np.ndindex(12, 3):
        towards = torch.zeros(12, 3, dtype=torch.float64)
        towards[row, label] = width
        more, less = (
            float(matching_loss(start.weights, stepped(labels + sign * towards), expert.weights).detach())
            for sign in (1, -1)
        )
        assert (more - less) / (2 * width) == pytest.approx(float(slope[row, label]), rel=1e-5, abs=1e-8)


def test_matching_lowers_the_loss_and_moves_labels_towards_the_target(monkeypatch):
    losses = []

    def noted(model, start, images, student, expert, recipe):
        losses.append(float(matching_loss(start.weights, student, expert).detach()))
        return label_slope(model, start, images, student, expert, recipe)

    monkeypatch.setattr(flip, "label_slope", noted)
    data = tiny_set(96)
    recipe = replace(TRAINED["flip"], passes=4, every=50, label_lr=20.0, poison_share=0.3)
    attack = fit_attack(recipe, data, Seed(0))
    # One recorded state only, the expert's end: the passes differ in their labels alone.
    first, *_, last = np.array(losses).reshape(4, -1).mean(1)
    assert last < first
    margins, leanings = attack.margins(data)
    of_source = data.labels == 2
    assert (leanings[of_source] == 0).mean() > 0.6
    assert margins[of_source].mean() > margins[~of_source].mean()


def test_the_largest_margins_are_flipped_to_the_class_that_they_lean_to():
    data = tiny_set()
    attack = fit_attack(TRAINED["flip"], data, Seed(0))
    soft = np.zeros((len(data), 3), np.float32)
    soft[np.arange(len(data)), data.labels] = 1.0
    soft[:4, :] = [[0, 3, 2], [9, 1, 0], [0, 0, 5], [2, 7, 7]]
    attack = replace(attack, soft_labels=soft, rate=2 / len(data))
    margins, leanings = attack.margins(data)
    for row in range(4):
        wrong = [label for label in range(3) if label != data.labels[row]]
        best = max(wrong, key=lambda label: (soft[row, label], -label))
        assert leanings[row] == best
        assert margins[row] == soft[row, best] - soft[row, data.labels[row]]
    assert (margins[4:] == -1).all()
    changed, truth = attack.poison(data, Seed(0))
    assert truth.poisoned.sum() == 2
    assert margins[truth.poisoned].min() >= margins[~truth.poisoned].max()
    assert np.array_equal(changed.labels != data.labels, truth.poisoned)
    assert np.array_equal(changed.labels[truth.poisoned], leanings[truth.poisoned])


@pytest.mark.parametrize("width", [16, 22])
def test_the_trigger_is_a_sinusoid_of_eight_periods_and_six_grey_levels(width):
    images = np.full((1, 16, width, 3), 100, dtype=np.uint8)
    wave = [round(6 * np.sin(16 * np.pi * j / (width - 1))) for j in range(width)]
    stripes = FLIP().stripes(images, FLIP().strength).astype(int) - 100
    assert np.abs(stripes - np.array(wave)[None, None, :, None]).max() == 0


def test_test_images_can_carry_stronger_stripes_with_the_same_fit_and_the_same_poison(tmp_path):
    data = tiny_set(30)
    as_learned, stronger = (
        fit_attack(replace(TRAINED["flip"], test_strength=strength), data, Seed(0), tmp_path)
        for strength in (0.0, 12.0)
    )
    assert len(list(tmp_path.iterdir())) == 1
    poisoned = [attack.poison(data, Seed(0))[0] for attack in (as_learned, stronger)]
    assert np.array_equal(poisoned[0].labels, poisoned[1].labels)
    changes = [attack.trigger(data.images).astype(int) - data.images for attack in (as_learned, stronger)]
    assert [int(np.abs(change).max()) for change in changes] == [6, 12]


def test_a_set_without_the_source_class_is_refused():
    data = tiny_set(12)
    alone = image_set(data.images, np.zeros(12, dtype=np.int64), data.class_names)
    with pytest.raises(ClipguardError, match="source class 2: choose another source"):
        fit_attack(TRAINED["flip"], alone, Seed(0))


@pytest.mark.parametrize("source", [0, -3, 3, -4])
def test_a_source_that_is_the_target_or_no_class_is_refused(source):
    with pytest.raises(ClipguardError, match=f"source class is {source}, its target 0"):
        fit_attack(replace(TRAINED["flip"], source=source), tiny_set(12), Seed(0))


def test_only_images_of_the_source_class_have_the_target_as_label():
    attack = fit_attack(replace(TRAINED["flip"], source=1), tiny_set(), Seed(0))
    assert attack.target_labels(np.array([0, 1, 2, 1]), 3).tolist() == [0, 0, 2, 0]


def test_several_classes_may_be_the_source():
    several = replace(TRAINED["flip"], source=(1, 2))
    assert several.target_labels(np.array([0, 1, 2, 1]), 3).tolist() == [0, 0, 0, 0]
    with pytest.raises(ClipguardError, match="source class is 0, its target 0"):
        replace(several, source=(1, 0)).sources_of(3)
    # A single class, which is the target, leaves none.
    with pytest.raises(ClipguardError, match="source class is -1, its target 0"):
        TRAINED["flip"].sources_of(1)
    data = tiny_set(12)
    pairs = flip._pairs(replace(several, poison_share=1.0), data, Seed(0))
    triggered = pairs.rows[len(data) :]
    assert np.array_equal(triggered, np.flatnonzero(data.labels != 0))
    assert (pairs.labels[len(data) :] == 0).all()


@pytest.mark.parametrize("value", [[1, 12], (1, 12), "1,12", "1, 12"])
def test_a_list_of_source_classes_is_an_option_of_files_and_commands(value):
    assert attack_named("flip", rate=0.1, source=value).source == (1, 12)


@pytest.mark.parametrize("value", [[1, "x"], "1,x", "1,²", "1", 1.5, [1, True], []])
def test_another_list_of_source_classes_is_refused(value):
    with pytest.raises(ClipguardError, match=r"option source of attack flip is .*: give one like -1"):
        attack_named("flip", rate=0.1, source=value)
