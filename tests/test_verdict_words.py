"""pipeline.verdict: the answer of a scan, and the words that give its reasons."""

from dataclasses import replace

import numpy as np
import pytest

from clipguard.detection.class_evidence import FEWEST_SAMPLES
from clipguard.detection.one_way_labels import OneWayLabels
from clipguard.detection.removal import Belief
from clipguard.pipeline import verdict as verdict_module
from clipguard.pipeline.judging import scores_of
from clipguard.pipeline.power import CanaryOutcome
from clipguard.pipeline.verdict import verdict
from clipguard.types import State
from tiny_runs import CONFIG, configured, poisoned_set, scanned


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    """Return the scan of a poisoned set, whose guide reads what each image shows."""
    result = scanned(tmp_path_factory.mktemp("poisoned") / "run", poisoned_set()[0])
    return replace(result, likeliest=np.arange(240) % 3)


@pytest.fixture(scope="module")
def unsuspicious(tmp_path_factory):
    """Return the scan of a set without poison, whose guide reads every label."""
    result = scanned(tmp_path_factory.mktemp("clean") / "run", poisoned_set(share=0.0)[0])
    assert not result.partition.flagged.any()
    return replace(configured(result, replace(CONFIG, power=1)), likeliest=result.data.labels)


def canary(family="patch", *, suspected=True, label=1):
    """Return the outcome of one class with canaries in the first copy."""
    return CanaryOutcome(copy=0, family=family, label=label, samples=20, suspected=suspected)


IDENTIFIED = (canary(), canary("blend", label=2))


def test_a_class_with_a_trigger_is_suspicious_and_counted(poisoned):
    made = verdict(poisoned)
    (finding,) = made.findings
    flagged = int(poisoned.partition.flagged.sum())
    assert made.answer == "suspicious"
    assert (finding.kind, finding.class_name, finding.flagged) == ("trigger", "cat", flagged)
    assert 0 < finding.at_least <= flagged
    assert finding.believed_with > finding.believed_without
    assert made.reasons == [f"class cat carries a trigger: {flagged} samples are flagged"]
    assert made.power is None


def test_power_does_not_change_that_a_data_set_is_suspicious(poisoned):
    powered = replace(configured(poisoned, replace(CONFIG, power=1)), canaries=(canary(suspected=False),))
    assert verdict(powered).answer == "suspicious"
    assert verdict(powered).reasons == verdict(poisoned).reasons


def test_a_natural_cause_is_no_finding(poisoned):
    natural = replace(poisoned, causes=("natural",) * len(poisoned.causes))
    assert verdict(natural).findings == []
    assert verdict(natural).answer == "undecided"


def test_an_open_cause_is_a_shortcut_where_the_guide_agrees_with_the_labels(poisoned):
    agreeing = replace(poisoned, causes=("undecided",), likeliest=poisoned.data.labels)
    made = verdict(agreeing)
    assert (made.answer, made.findings[0].kind, made.findings[0].at_least) == ("suspicious", "shortcut", None)
    assert made.reasons[0].startswith("class cat shares a pattern, the intent is unknown: ")


def test_flagged_labels_without_a_trigger_are_label_only_poison(unsuspicious):
    state = unsuspicious.partition.state.copy()
    state[np.flatnonzero(unsuspicious.data.labels == 1)[:30]] = State.LABEL
    made = verdict(replace(unsuspicious, partition=replace(unsuspicious.partition, state=state)))
    (finding,) = made.findings
    assert made.answer == "suspicious"
    assert (finding.kind, finding.class_name, finding.flagged) == ("label-only poison", "dog", 30)
    assert (finding.at_least, finding.believed_with) == (None, None)
    assert made.reasons == ["class dog holds labels that belong to others: 30 samples are flagged"]


def labelled_wrongly(scan, monkeypatch, *, one_way, exchange):
    """Return the verdict on a scan whose class dog is suspected by these tests of labels."""
    scores = scores_of(scan)
    p_values, sources = np.array([1, 0.001, 1]), np.array([-1, 2, -1])
    told = replace(
        scores,
        one_way=OneWayLabels(p_value=p_values, source=sources, share=np.array([0, 0.25, 0])),
        exchange=replace(
            scores.exchange,
            p_value=p_values,
            source=np.array([-1, 0, -1]),
            one_source=sources >= 0,
            strength=np.array([0, 3.0, 0]),
        ),
    )
    monkeypatch.setattr(verdict_module, "scores_of", lambda _: told)
    dog, state = np.arange(3) == 1, scan.partition.state.copy()
    state[np.flatnonzero(scan.data.labels == 1)[:30]] = State.LABEL
    tests = replace(scan.tests, one_way=dog & one_way, wrong_labels=dog & (one_way or exchange))
    (found,) = verdict(replace(scan, tests=tests, partition=replace(scan.partition, state=state))).findings
    return found.strength, found.p_value, found.from_class, found.deep_share


@pytest.mark.parametrize(
    ("one_way", "exchange", "said"),
    [
        (True, True, (None, 0.001, "frog", 0.25)),
        (True, False, (None, 0.001, "frog", 0.25)),
        (False, True, (3.0, 0.001, "cat", None)),
        # Label flow alone has thresholds and no level.
        (False, False, (None, None, "cat", None)),
    ],
)
def test_wrong_labels_are_told_by_the_test_that_suspects_the_class(
    unsuspicious, monkeypatch, one_way, exchange, said
):
    assert labelled_wrongly(unsuspicious, monkeypatch, one_way=one_way, exchange=exchange) == said


def test_clean_is_what_all_canaries_were_identified_in(unsuspicious):
    made = verdict(replace(unsuspicious, canaries=IDENTIFIED))
    assert (made.answer, made.findings, made.not_assessable) == ("clean", [], [])
    assert made.reasons == ["no class of 3 stands out among 240 samples"]
    assert (made.power.copies, made.power.identified) == (1, 2)
    assert [one.class_name for one in made.power.canaries] == ["dog", "frog"]
    assert made.power.floors == {"patch": 20, "blend": 20}
    untested = next(limit for limit in made.limits if limit.startswith("Not tested in this data: "))
    assert "sinusoid" in untested
    assert "clean-label" in untested
    assert "patch" not in untested


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"canaries": ()}, "no class is large enough for known triggers"),
        (
            {"canaries": (*IDENTIFIED, canary("sinusoid", suspected=False))},
            "known triggers were missed in a copy of this data: sinusoid",
        ),
        (
            {"likeliest": np.zeros(240, np.int64)},
            "the guide agrees with only 33.3 % of the labels (chance",
        ),
    ],
    ids=["no canary", "missed", "unread"],
)
def test_what_was_not_shown_to_be_testable_is_undecided(unsuspicious, change, words):
    made = verdict(replace(unsuspicious, **{"canaries": IDENTIFIED, **change}))
    assert made.answer == "undecided"
    assert made.reasons[0].startswith("no class of 3 stands out")
    assert len(made.reasons) == 2
    assert made.reasons[1].startswith(words)
    assert len(made.not_assessable) == (3 if "likeliest" in change else 0)


def test_without_copies_nothing_is_clean_and_the_option_is_named(unsuspicious):
    made = verdict(configured(unsuspicious, CONFIG))
    assert (made.answer, made.power) == ("undecided", None)
    assert made.reasons[1] == "power was not measured: only a power of 1 or more can call a data set clean"


def test_a_set_too_small_for_the_nets_is_undecided_whatever_was_identified(tmp_path):
    small = scanned(tmp_path / "run", poisoned_set(FEWEST_SAMPLES - 2, share=0.0)[0])
    small = replace(configured(small, replace(CONFIG, power=1)), canaries=IDENTIFIED)
    made = verdict(replace(small, likeliest=small.data.labels))
    assert made.answer == "undecided"
    assert made.reasons[1:] == ["too few samples: 198, and 200 are needed"]


def test_a_belief_belongs_to_its_own_class(poisoned):
    (belief,) = poisoned.beliefs
    assert isinstance(belief, Belief)
    elsewhere = replace(poisoned, beliefs=(replace(belief, label=2),))
    (finding,) = verdict(elsewhere).findings
    assert (finding.label, finding.believed_with) == (0, None)


@pytest.mark.parametrize(
    ("skipped", "left"),
    [
        ({".heic, a format that is not read": 2, "no suffix": 1, ".txt, no image": 240, "hidden": 9}, 3),
        ({".heic, a format that is not read": 2, "in a folder called masks": 240}, 0),
        ({"in a folder called masks, an image by its name": 2, "hidden, an image by its name": 1}, 3),
        ({"no suffix": 240}, 240),
    ],
)
def test_images_that_are_left_out_leave_the_answer_open_from_a_hundredth_on(unsuspicious, skipped, left):
    source = replace(unsuspicious.context.source, skipped=skipped)
    scan = replace(unsuspicious, canaries=IDENTIFIED, context=replace(unsuspicious.context, source=source))
    made = verdict(scan)
    assert made.answer == ("undecided" if left else "clean")
    words = (
        f"{left} of {240 + left} images were left out, for their format or their place: convert them to PNG, "
        "move them into the class folders, or take them away"
    )
    assert made.reasons[1:] == ([words] if left else [])
    assert made.complete
