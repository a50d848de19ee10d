"""mitigation.unlearning: the loss against a slow oracle, who is learnt from and who is not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

from clipguard.compute.inference import classifier_logits
from clipguard.compute.training import Recipe, cross_entropy, fit
from clipguard.mitigation import unlearning as room
from clipguard.mitigation.unlearning import (
    REFERENCE,
    UnlearningConfig,
    class_weights,
    trigger_augmented,
    unlearn,
)
from clipguard.models.spec import ModelSpec, Normalized, build
from clipguard.seeds import Seed
from clipguard.triggers.affine import AffineTrigger
from clipguard.types import Scores, Split, image_set
from tiny_runs import NAMES, poisoned_set, stamp

K = 3
STEP = Recipe(
    epochs=1, lr=0.0, batch_size=64, warmup=0.0, constant=True, crop=0.0, flip=False, weight_decay=0.0
)
SPEC = ModelSpec(architecture="preactresnet18-4", num_classes=K, input_size=(8, 8))
seeds = st.integers(0, 2**32)


class ByRow(nn.Module):
    """A model whose logits are free parameters: row r of a table, for images filled with the value r."""

    def __init__(self, logits):
        super().__init__()
        self.table = nn.Parameter(torch.from_numpy(logits.astype(np.float32)))

    def forward(self, x):
        rows = x[:, 0, 0, 0].round().long()
        return self.table[rows]


def by_row(logits):
    """Return such a model with its images; normalisation leaves 0..255 as they are."""
    spec = replace(SPEC, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
    images = np.repeat(np.arange(len(logits), dtype=np.uint8), 12).reshape(-1, 2, 2, 3)
    return Normalized(ByRow(logits), spec), images


def draw_case(n, seed, spread=4.0):
    """Return a model, data, split and guide: logits, labels and sets at random, nobody in both sets."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, spread, (n, K)).astype(np.float32)
    model, images = by_row(logits)
    place = draw.integers(0, 3, n)
    place[0] = 0  # somebody to learn from
    part = Split(clean=place == 0, triggered=place == 1, suspicion=np.zeros(n))
    shown = draw.dirichlet(np.ones(K), n) * ((place == 1) & (draw.random(n) < 0.5))[:, None]
    part = replace(part, shown=shown.astype(np.float32), honest=draw.uniform(0.2, 1, K))
    guide = Scores(logits=draw.normal(size=(n, K)).astype(np.float32), scale=3.0, source="guide")
    return model, image_set(images, draw.integers(0, K, n), NAMES), part, guide, logits.astype(np.float64)


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def kl(p, q):
    return float((p * (np.log(p) - np.log(q))).sum())


def oracle(logits, data, part, guide, cure):
    """Return the mean loss over the samples in the two sets, one sample after the other in float64."""
    honest = np.ones(K) if part.honest is None else part.honest
    weights = class_weights(part.clean, ~part.triggered, data.labels, honest) if cure.balance else np.ones(K)
    total = 0.0
    columns = (data.labels, part.clean, part.triggered, part.shown, guide.logits.astype(np.float64))
    for z, y, clean, triggered, shown, opinion in zip(logits, *columns, strict=True):
        p = softmax(z)
        if clean:
            # The uncured model is its own teacher at the first step: the distillation term is then 0.
            total += weights[y] * (1 - cure.distill) * -np.log(p[y])
        if triggered:
            others = sum(p[j] for j in range(K) if j != y)
            forget = -np.log(others) if cure.loss == "unlikelihood" else np.log(p[y] + 1e-6)
            t = cure.temperature
            total += cure.unlearn * forget * (cure.mislabelled if shown.any() else 1)
            total -= cure.relabel * sum(q * np.log(r) for q, r in zip(shown, p, strict=True))
            total += cure.guide * t * t * kl(softmax(guide.scale * opinion / t), softmax(z / t))
    return total / (part.clean | part.triggered).sum()


@hypothesis_settings(max_examples=60)
@given(
    st.integers(2, 30),
    seeds,
    st.sampled_from(["unlikelihood", "reference"]),
    st.floats(0, 2),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([0.0, 0.5]),
    st.booleans(),
)
def test_the_loss_is_that_of_a_slow_oracle(n, seed, loss, weight, guide_weight, distill, balance):
    model, data, part, guide, logits = draw_case(n, seed)
    cure = UnlearningConfig(
        loss=loss, recipe=STEP, unlearn=weight, guide=guide_weight, distill=distill, balance=balance
    )
    history = unlearn(model, data, part, guide, cure, Seed(seed))
    wanted = oracle(logits, data, part, guide, cure)
    assert history.columns["loss"][0] == pytest.approx(wanted, rel=1e-3, abs=1e-4)


def gradient(loss, gap):
    """Return d loss / d logit of the given label for one triggered sample that leads the others by `gap`."""
    model, images = by_row(np.array([[gap, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    data = image_set(images, np.array([0, 1]), NAMES)
    sets = np.array([True, False])
    part = Split(clean=~sets, triggered=sets, suspicion=np.zeros(2))
    guide = Scores(logits=np.zeros((2, K), np.float32), scale=1.0, source="guide")
    before = model.network.table[0, 0].item()
    step = replace(STEP, lr=1.0)
    unlearn(
        model, data, part, guide, UnlearningConfig(loss=loss, recipe=step, unlearn=1.0, guide=0.0), Seed(0)
    )
    # The first step of Nesterov momentum 0.9 is 1.9 gradients long; the loss is a mean over two samples.
    return (before - model.network.table[0, 0].item()) * 2 / 1.9


@pytest.mark.parametrize("gap", [0.0, 2.0, 10.0, 30.0, 200.0])
def test_the_unlikelihood_gradient_is_the_probability_itself_and_so_never_vanishes_where_poison_sits(gap):
    p = 1 / (1 + 2 * np.exp(-gap))
    assert gradient("unlikelihood", gap) == pytest.approx(p, rel=1e-3)


def test_the_gradient_of_the_reference_vanishes_where_poison_sits():
    assert gradient("reference", 0.0) == pytest.approx(2 / 3, rel=1e-3)
    assert abs(gradient("reference", 15.0)) < 1e-5
    assert abs(gradient("reference", 30.0)) < 1e-9


def test_certain_labels_give_finite_weights():
    model, images = by_row(np.array([[3e4, 0.0, 0.0], [0.0, 3e4, 0.0]]))
    data = image_set(images, np.array([0, 1]), NAMES)
    sets = np.array([True, False])
    guide = Scores(logits=np.zeros((2, K), np.float32), scale=1.0, source="guide")
    part = Split(clean=~sets, triggered=sets, suspicion=np.zeros(2))
    unlearn(model, data, part, guide, UnlearningConfig(recipe=replace(STEP, lr=0.1), guide=0.1), Seed(0))
    assert torch.isfinite(model.network.table).all()


@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.booleans()), min_size=1, max_size=60),
    st.lists(st.floats(0.1, 1), min_size=6, max_size=6),
)
def test_class_weights_are_those_of_a_slow_oracle(rows, honest):
    labels = np.array([row[0] for row in rows])
    clean, kept = (np.array([row[i] for row in rows]) for i in (1, 2))
    found = class_weights(clean, kept | clean, labels, np.array(honest))
    have = [sum(c for y, c in zip(labels, clean, strict=True) if y == k) for k in range(6)]
    want = [sum(c for y, c in zip(labels, kept | clean, strict=True) if y == k) for k in range(6)]
    raw = [w * part / h if h else 0.0 for w, part, h in zip(want, honest, have, strict=True)]
    mass = sum(r * h for r, h in zip(raw, have, strict=True))
    for k in range(6):
        assert found[k] == pytest.approx(min(raw[k] * sum(have) / mass, 10.0) if have[k] else 0.0)


def test_a_class_without_clean_samples_weighs_nothing_and_the_others_average_one():
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    clean = np.array([1, 1, 1, 1, 1, 0, 0, 0], bool)
    found = class_weights(clean, np.ones(8, bool), labels, np.ones(4))
    assert (found[2], found[3]) == (0, 0)
    assert found[1] == pytest.approx(2 * found[0])
    assert (found[labels[clean]]).mean() == pytest.approx(1)


def test_no_class_weighs_more_than_ten_times_the_usual():
    labels = np.repeat([0, 1], [100, 100])
    clean = labels == 0
    clean[100] = True
    assert class_weights(clean, np.ones(200, bool), labels, np.ones(2)).max() == 10


def asked(monkeypatch):
    """Return a list that fills with the rows of each pass, while the real kernel trains."""
    passes = []

    def recorded(model, images, choose, *rest):
        def noted(epoch):
            passes.append(choose(epoch))
            return passes[-1]

        return fit(model, images, noted, *rest)

    monkeypatch.setattr(room, "fit", recorded)
    return passes


@pytest.mark.parametrize("seed", range(5))
def test_exactly_the_believed_are_readmitted_and_never_the_triggered_or_doubted(seed, monkeypatch):
    passes = asked(monkeypatch)
    # Nothing moves at a rate of zero, so that the beliefs are known beforehand.
    model, data, part, guide, logits = draw_case(120, seed)
    cure = UnlearningConfig(recipe=replace(STEP, epochs=3), readmit=0.6)
    doubted = ~part.clean & ~part.triggered & (np.arange(120) % 3 == 0)
    part = replace(part, doubted=doubted)
    history = unlearn(model, data, part, guide, cure, Seed(0))
    belief = np.array([softmax(z)[y] for z, y in zip(logits, data.labels, strict=True)])
    assert ((belief > 0.6) & doubted).any()
    believed = part.clean | ((belief > 0.6) & ~part.triggered & ~doubted)
    assert (believed & ~part.clean).sum() > 2
    assert ((belief > 0.6) & part.triggered).sum() > 2
    assert set(passes[0]) == set(np.flatnonzero(part.clean | part.triggered))
    for rows in passes[1:]:
        assert set(rows) == set(np.flatnonzero(believed | part.triggered))
    assert history.columns["clean"] == (part.clean.sum(), believed.sum(), believed.sum())
    assert history.columns["triggered"] == (part.triggered.sum(),) * 3


def test_readmission_can_be_turned_off(monkeypatch):
    passes = asked(monkeypatch)
    model, data, part, guide, _ = draw_case(60, 0)
    unlearn(model, data, part, guide, UnlearningConfig(recipe=replace(STEP, epochs=3), readmit=1.0), Seed(0))
    assert [set(rows) for rows in passes] == [set(np.flatnonzero(part.clean | part.triggered))] * 3


def test_nobody_is_admitted_to_a_closed_class(monkeypatch):
    passes = asked(monkeypatch)
    model, data, part, guide, logits = draw_case(60, 0)
    believed = np.array([softmax(z)[y] for z, y in zip(logits, data.labels, strict=True)]) > 0.5
    waiting = believed & ~part.clean & ~part.triggered
    assert len(set(data.labels[waiting])) == K
    part = replace(part, closed=(0, 2))
    unlearn(model, data, part, guide, UnlearningConfig(recipe=replace(STEP, epochs=2), readmit=0.5), Seed(0))
    admitted = passes[1][~(part.clean | part.triggered)[passes[1]]]
    assert set(admitted) == set(np.flatnonzero(waiting & (data.labels == 1)))


def poisoned_case():
    """Return poisoned data with a split that leaves a fifth in neither set, and which samples those are."""
    data, poisoned = poisoned_set(60)
    away = ~poisoned & (np.random.default_rng(1).random(60) < 0.2)
    part = Split(clean=~poisoned & ~away, triggered=poisoned, suspicion=poisoned.astype(np.float64))
    guide = Scores(logits=np.zeros((60, K), np.float32), scale=1.0, source="guide")
    return data, part, guide, away


def state_after(data, part, guide, cure):
    model = build(replace(SPEC, input_size=(16, 16)), Seed(7))
    unlearn(model, data, part, guide, cure, Seed(0))
    return model.state_dict()


@pytest.mark.parametrize("distill", [0.0, 0.5])
def test_samples_in_neither_set_reach_neither_weights_nor_batchnorm_statistics(distill):
    data, part, guide, away = poisoned_case()
    images, labels = data.images.copy(), data.labels.copy()
    images[away], labels[away] = 255 - images[away], (labels[away] + 1) % K
    other = image_set(images, labels, NAMES)
    moved = replace(guide, logits=np.where(away[:, None], np.float32(9), guide.logits))
    cure = UnlearningConfig(
        recipe=Recipe(epochs=2, lr=0.02, batch_size=16), readmit=1.0, distill=distill, balance=False
    )
    one, two = state_after(data, part, guide, cure), state_after(other, part, moved, cure)
    assert sum("running_mean" in name for name in one) > 5
    assert all(torch.equal(one[name], two[name]) for name in one)
    # The comparison can fail: with everybody admitted after the first pass, they do reach both.
    open_cure = replace(cure, readmit=0.0)
    one, two = state_after(data, part, guide, open_cure), state_after(other, part, moved, open_cure)
    changed = {name.rsplit(".", 1)[-1] for name in one if not torch.equal(one[name], two[name])}
    assert changed >= {"weight", "running_mean"}


def test_triggered_samples_do_reach_the_weights():
    data, part, guide, _ = poisoned_case()
    cure = UnlearningConfig(recipe=Recipe(epochs=1, lr=0.02, batch_size=16), readmit=1.0)
    nobody = replace(part, triggered=np.zeros(60, bool))
    one, two = state_after(data, part, guide, cure), state_after(data, nobody, guide, cure)
    assert not torch.equal(one["network.head.weight"], two["network.head.weight"])


def test_distillation_keeps_the_model_nearer_to_what_it_was():
    # Labels at odds with the model pull it away; its own former opinion holds it.
    draw = np.random.default_rng(0)
    logits = draw.normal(0, 2, (40, K))
    data = image_set(by_row(logits)[1], (logits.argmax(1) + 1) % K, NAMES)
    part = Split(clean=np.ones(40, bool), triggered=np.zeros(40, bool), suspicion=np.zeros(40))
    guide = Scores(logits=np.zeros((40, K), np.float32), scale=1.0, source="guide")
    moved = []
    for share in (0.0, 0.9):
        model, _ = by_row(logits)
        cure = UnlearningConfig(recipe=replace(STEP, epochs=20, lr=1.0), distill=share, readmit=1.0)
        unlearn(model, data, part, guide, cure, Seed(0))
        moved.append(np.abs(model.network.table.detach().numpy() - logits).mean())
    assert moved[1] < moved[0] / 2


def test_a_planted_backdoor_is_gone_after_the_cure_and_accuracy_is_not():
    data, poisoned = poisoned_set()
    test, _ = poisoned_set(90, share=0.0, seed=9)
    model = build(ModelSpec(architecture="shallow-8", num_classes=K, input_size=(16, 16)), Seed(0))
    recipe = Recipe(epochs=15, lr=0.05, batch_size=16, crop=0.0, flip=False)
    fit(model, data.images, np.arange(len(data)), cross_entropy(data.labels), recipe, Seed(0))
    others = test.labels != 0

    def rates():
        right = (classifier_logits(model, test.images).argmax(1) == test.labels).mean()
        fooled = (classifier_logits(model, stamp(test.images[others])).argmax(1) == 0).mean()
        return float(right), float(fooled)

    accuracy, success = rates()
    assert success > 0.8
    part = Split(clean=~poisoned, triggered=poisoned, suspicion=poisoned.astype(np.float64))
    guide = Scores(logits=np.zeros((len(data), K), np.float32), scale=1.0, source="guide")
    heard = []
    cure = UnlearningConfig(recipe=replace(recipe, epochs=5, lr=0.02))
    unlearn(model, data, part, guide, cure, Seed(0), on_epoch=heard.append)
    cured_accuracy, cured_success = rates()
    assert heard == [1, 2, 3, 4, 5]
    assert cured_success < 0.2
    assert cured_accuracy > accuracy - 0.1


def test_the_reference_has_the_papers_values():
    assert (REFERENCE.loss, REFERENCE.unlearn, REFERENCE.guide, REFERENCE.temperature) == (
        "reference",
        0.025,
        0.0005,
        3.0,
    )
    assert (REFERENCE.recipe.epochs, REFERENCE.recipe.optimizer) == (10, "plain-sgd")
    assert (REFERENCE.recipe.lr, REFERENCE.recipe.batch_size, REFERENCE.recipe.constant) == (0.01, 256, True)
    assert (REFERENCE.readmit, REFERENCE.distill) == (1.0, 0.0)
    assert (REFERENCE.mislabelled, REFERENCE.relabel) == (1.0, 0.0)


def test_copies_with_the_trigger_are_appended_as_clean_and_nothing_else_changes():
    _, data, part, guide, _ = draw_case(60, 5)
    part = replace(part, triggered=part.triggered & (data.labels < 2))
    white = AffineTrigger(scale=np.zeros((2, 2, 3), np.float32), shift=np.full((2, 2, 3), 255, np.float32))
    longer, more, opinion = trigger_augmented(
        data, part, guide, [white], UnlearningConfig(stamp=0.5), Seed(1)
    )
    n, added = len(data), round(0.5 * part.clean.sum())
    assert len(longer) == n + added == len(more.clean) == len(opinion.logits)
    assert np.array_equal(longer.images[:n], data.images)
    assert np.array_equal(longer.labels[:n], data.labels)
    assert (longer.images[n:] == 255).all()
    assert more.clean[n:].all()
    assert not more.triggered[n:].any()
    assert np.array_equal(more.clean[:n], part.clean)
    assert len(set(longer.ids)) == len(longer)


def test_each_trigger_is_copied_apart_and_never_onto_the_class_it_leads_to():
    _, data, part, guide, _ = draw_case(60, 5)
    none = np.zeros((2, 2, 3), np.float32)
    white, grey = (
        AffineTrigger(scale=none, shift=none + value, label=label) for value, label in ((255, 0), (90, 1))
    )
    longer, more, opinion = trigger_augmented(
        data, part, guide, [white, grey], UnlearningConfig(stamp=0.4), Seed(1)
    )
    copied = longer.images[len(data) :, 0, 0, 0]
    labels = longer.labels[len(data) :]
    each = round(0.4 * part.clean.sum())
    assert copied.tolist() == [255] * each + [90] * each
    assert not (labels[copied == 255] == 0).any()
    assert not (labels[copied == 90] == 1).any()
    assert more.clean[len(data) :].all()
    assert len(opinion.logits) == len(longer) == len(set(longer.ids))


def test_without_a_trigger_nothing_is_copied():
    _, data, part, guide, _ = draw_case(60, 5)
    longer, more, _ = trigger_augmented(data, part, guide, [], UnlearningConfig(), Seed(1))
    assert np.array_equal(longer.images, data.images)
    assert np.array_equal(more.clean, part.clean)


def test_the_class_that_all_flagged_samples_are_labelled_with_is_not_copied():
    _, data, part, guide, _ = draw_case(60, 5)
    part = replace(part, triggered=part.triggered & (data.labels == 1))
    same = AffineTrigger(scale=np.ones((2, 2, 3), np.float32), shift=np.zeros((2, 2, 3), np.float32))
    longer, _, opinion = trigger_augmented(data, part, guide, [same], UnlearningConfig(stamp=1.0), Seed(1))
    copied = longer.labels[len(data) :]
    assert len(copied) == (part.clean & (data.labels != 1)).sum() > 0
    assert not (copied == 1).any()
    # Each copy keeps its own image, label and guide's opinion: with this trigger, rows are recognisable.
    for image, label, logits in zip(
        longer.images[len(data) :], copied, opinion.logits[len(data) :], strict=True
    ):
        row = int(image[0, 0, 0])
        assert label == data.labels[row]
        assert np.array_equal(logits, guide.logits[row])
