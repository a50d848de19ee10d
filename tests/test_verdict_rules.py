"""detection.verdict: what is wrong with which class, and what may be called clean."""

import itertools

import numpy as np
import pytest

from clipguard.detection import verdict
from clipguard.detection.class_evidence import FEWEST_SAMPLES, ClassEvidence
from clipguard.detection.early_belief import EarlyBelief
from clipguard.detection.removal import Agreement, Belief
from clipguard.detection.verdict import MOST_LEFT_OUT, MOST_UNREAD, Open, answer, kinds

RIGHT = Agreement(agreeing=40, flagged=50, rest_agreeing=160, rest=200)
WRONG = Agreement(agreeing=1, flagged=50, rest_agreeing=160, rest=200)
BELIEF = Belief(
    label=0,
    held_out=25,
    group_with=0.9,
    group_without=0.1,
    trusted=50,
    trusted_with=None,
    trusted_without=None,
)


def evidence_of(triggered, wrong_labels):
    k = len(triggered)
    early = EarlyBelief(
        p_value=np.ones(k),
        strength=np.zeros(k),
        suspected=np.zeros(k, dtype=bool),
        flagged=np.zeros(4, dtype=bool),
        at_least=np.zeros(k, dtype=np.int64),
        false_share=np.ones(4),
    )
    return ClassEvidence(
        pixel_strength=np.zeros(k),
        early=early,
        triggered=np.array(triggered),
        one_way=np.zeros(k, dtype=bool),
        wrong_labels=np.array(wrong_labels),
        flagged=np.zeros(4, dtype=bool),
        at_least=np.zeros(k, dtype=np.int64),
        q_value=np.ones(4),
    )


def kind_of(*, triggered=False, wrong_labels=False, flagged_labels=False, cause=None, agreement=None):
    """Return the kind of the one class, None if nothing is wrong with it."""
    result = kinds(
        evidence_of([triggered], [wrong_labels]),
        np.array([flagged_labels]),
        {} if cause is None else {0: (BELIEF, cause)},
        {} if agreement is None else {0: agreement},
    )
    return result.get(0)


def test_the_guide_disagrees_with_wrong_labels_alone():
    assert WRONG.labels_are_wrong
    assert not RIGHT.labels_are_wrong


@pytest.mark.parametrize("flagged_labels", [False, True])
@pytest.mark.parametrize(
    ("cause", "agreement", "expected"),
    [
        ("trigger", WRONG, "trigger"),
        ("shortcut", RIGHT, "shortcut"),
        ("undecided", WRONG, "trigger"),
        ("undecided", RIGHT, "shortcut"),
        (None, WRONG, "trigger"),
        (None, RIGHT, "shortcut"),
        (None, None, "trigger"),
    ],
)
def test_a_class_with_a_trigger_is_suspicious_unless_its_cause_is_natural(
    flagged_labels, cause, agreement, expected
):
    kind = kind_of(triggered=True, flagged_labels=flagged_labels, cause=cause, agreement=agreement)
    assert kind == expected


@pytest.mark.parametrize("agreement", [RIGHT, WRONG])
def test_a_natural_cause_clears_the_trigger_but_not_the_labels(agreement):
    assert kind_of(triggered=True, cause="natural", agreement=agreement) is None
    kind = kind_of(triggered=True, cause="natural", agreement=agreement, flagged_labels=True)
    assert kind == "label-only poison"


@pytest.mark.parametrize(("wrong_labels", "flagged_labels"), [(True, False), (False, True), (True, True)])
def test_labels_alone_make_label_only_poison(wrong_labels, flagged_labels):
    assert kind_of(wrong_labels=wrong_labels, flagged_labels=flagged_labels) == "label-only poison"


def test_a_class_without_any_evidence_is_not_named_whatever_the_guide_says_of_it():
    assert kind_of(cause="trigger", agreement=WRONG) is None


def test_each_class_is_judged_by_its_own_cause_and_agreement():
    triggered = [True, False, True, True, False, False]
    wrong_labels = [False, False, False, False, True, False]
    flagged_labels = [False, False, False, False, False, True]
    result = kinds(
        evidence_of(triggered, wrong_labels),
        np.array(flagged_labels),
        {0: (BELIEF, "natural"), 2: (BELIEF, "shortcut"), 3: (BELIEF, "trigger")},
        {0: WRONG, 2: RIGHT, 3: WRONG},
    )
    assert result == {2: "shortcut", 3: "trigger", 4: "label-only poison", 5: "label-only poison"}


def scan_of(*, samples=FEWEST_SAMPLES, copies=2, identified=(True,) * 8, unread=0.0, left_out=0.0):
    return verdict.Tested(
        samples=samples, copies=copies, identified=identified, unread=unread, left_out=left_out
    )


@pytest.mark.parametrize(
    ("tested", "reasons"),
    [
        (scan_of(), ()),
        (scan_of(samples=50_000, identified=(True,)), ()),
        (scan_of(unread=MOST_UNREAD), ()),
        (scan_of(unread=MOST_UNREAD + 1e-9), (Open.UNREAD,)),
        (scan_of(left_out=MOST_LEFT_OUT), ()),
        (scan_of(left_out=MOST_LEFT_OUT + 1e-9), (Open.LEFT_OUT,)),
        (scan_of(samples=FEWEST_SAMPLES - 1), (Open.TOO_FEW,)),
        (scan_of(samples=0, copies=0, identified=(), unread=1.0), (Open.TOO_FEW,)),
        (scan_of(copies=0, identified=()), (Open.NO_POWER,)),
        (scan_of(identified=()), (Open.NO_CANARY,)),
        (scan_of(identified=(True, False, True)), (Open.MISSED,)),
        (scan_of(identified=(False,)), (Open.MISSED,)),
        (scan_of(copies=0, identified=(), unread=0.9), (Open.NO_POWER, Open.UNREAD)),
        (scan_of(identified=(True, False), unread=1.0), (Open.MISSED, Open.UNREAD)),
    ],
)
def test_clean_is_only_what_nothing_leaves_open(tested, reasons):
    assert answer({}, tested) == ("undecided" if reasons else "clean", reasons)


@pytest.mark.parametrize("kind", ["trigger", "label-only poison", "shortcut"])
def test_one_finding_makes_the_answer_suspicious_whatever_was_tested(kind):
    for samples, copies, unread in itertools.product((10, 50_000), (0, 2), (0.0, 1.0)):
        tested = scan_of(samples=samples, copies=copies, identified=(True,) * copies, unread=unread)
        assert answer({3: kind}, tested) == ("suspicious", ())
