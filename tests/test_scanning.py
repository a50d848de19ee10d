"""pipeline.scanning: signals in order, each stage computed once, one row a sample."""

import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest

from clipguard.clip.zero_shot import ClipGuide
from clipguard.data import ImageSource
from clipguard.data.decode import common_size
from clipguard.pipeline import samples, scanning
from clipguard.pipeline.config import DefenseConfig
from clipguard.pipeline.scan import Context
from clipguard.pipeline.summary import few_clean
from clipguard.runs import read_table
from clipguard.types import NO_TRIGGER, STATES, Preprocessing, State
from tiny_runs import CONFIG, GUIDE, NAMES, folder_of, poisoned_set, samples_of, scanned, silent

SCAN = (
    "embeddings",
    "images",
    "early_model",
    "label_flow",
    "trigger_detector",
    "removal",
    "trigger_inversion",
    "samples",
)
DETECTOR, FLOW = CONFIG.trigger_detector, CONFIG.label_flow


@pytest.fixture(scope="module")
def poisoned():
    return poisoned_set()


@pytest.fixture(scope="module")
def result(poisoned, tmp_path_factory):
    return scanned(tmp_path_factory.mktemp("scan") / "run", poisoned[0])


@pytest.fixture
def copied(result, tmp_path):
    """Return a copy of the run folder."""
    shutil.copytree(result.context.run.path, tmp_path / "run")
    return tmp_path / "run"


def cached(scan):
    return {name for name, stage in scan.context.finished.items() if stage.cached}


@pytest.mark.parametrize(
    ("size", "expected"),
    [((32, 32), (32, 32)), ((128, 96), (64, 48)), ((300, 30), (64, 8)), ((4, 6), (8, 8))],
)
def test_small_nets_see_the_commonest_size_within_its_bounds(tmp_path, size, expected):
    images = np.zeros((4, *size, 3), np.uint8)
    images[::2] = 200
    source = ImageSource.open((images, np.arange(4) % 2), classes=NAMES[:2])
    context = Context(
        run=folder_of(tmp_path / "run", source),
        source=source,
        common_size=common_size(source),
        guide=GUIDE,
        config=replace(CONFIG, size=None),
        progress=silent,
    )
    assert context.view == Preprocessing(size=expected)


def test_a_scan_finds_the_poison(result, poisoned):
    truth, partition = poisoned[1], result.partition
    assert partition.flagged[truth].mean() > 0.7
    assert partition.flagged[~truth].mean() < 0.1
    assert partition.clean[truth].mean() < 0.2


def test_a_scan_holds_nothing_out(result):
    assert not result.partition.has(State.HELD_OUT).any()
    assert sum(result.partition.counts.values()) == len(result.data) == 240


def test_the_stages_of_a_scan_stand_in_their_order(result):
    assert tuple(result.context.finished) == SCAN


def test_a_row_a_sample_is_written_and_ranked_by_suspicion(result):
    rows, partition = samples_of(result.context.run.path), result.partition
    assert list(rows["id"]) == list(result.data.ids)
    assert sorted(rows["rank"]) == list(range(1, 241))
    by_rank = np.argsort(rows["rank"])
    assert (np.diff(rows["poison_score"][by_rank]) <= 0).all()
    assert np.array_equal(rows["poison_score"], partition.suspicion)
    assert np.array_equal(rows["label"], result.data.labels)
    assert list(rows["given_label"]) == [NAMES[label] for label in result.data.labels]
    assert list(rows["predicted_label"]) == [NAMES[row.argmax()] for row in result.guide.logits[:]]
    for name, value in asdict(result.entropy).items():
        assert np.array_equal(rows[name], value)
    assert [*zip(rows["status"], rows["reason"], strict=True)] == [
        (STATES[state].status, STATES[state].reason) for state in partition.state
    ]
    assert {"flagged", "trusted", "set aside"} == set(rows["status"])
    assert set(rows["reason"][rows["status"] == "flagged"]) == {"trigger"}
    assert np.array_equal(rows["trigger"], partition.trigger + 1)


def test_flagged_samples_name_the_reconstructed_trigger(poisoned, copied, monkeypatch):
    monkeypatch.setattr("clipguard.detection.trigger_inversion.FEWEST", 10)
    again = scanned(copied, poisoned[0], replace(CONFIG, seed=3))
    assert len(again.triggers) == 1
    assert set(again.partition.trigger[again.partition.flagged]) == {0}
    assert set(again.partition.trigger[~again.partition.flagged]) == {NO_TRIGGER}
    rows = samples_of(copied)
    assert np.array_equal(rows["trigger"] == 1, rows["reason"] == "trigger")


@pytest.mark.parametrize("seed", range(3))
def test_ties_are_ranked_by_name_whatever_the_order_of_the_rows(tmp_path, result, seed):
    order = np.random.default_rng(seed).permutation(len(result.data))
    # Five steps of suspicion only, so that most samples tie.
    coarse = replace(result.partition, suspicion=np.floor(5 * result.partition.suspicion))
    ranks = []
    for name, rows in (("straight", np.arange(len(order))), ("shuffled", order)):
        shuffled = replace(
            result,
            data=result.data.take(rows),
            guide=replace(result.guide, logits=result.guide.logits[rows]),
            partition=replace(
                coarse,
                state=coarse.state[rows],
                suspicion=coarse.suspicion[rows],
                trigger=coarse.trigger[rows],
            ),
            columns={column: values[rows] for column, values in result.columns.items()},
        )
        (tmp_path / name).mkdir()
        samples.write_samples(shuffled, tmp_path / name, lambda done, total: None)
        table = read_table(tmp_path / name / "samples.parquet")
        ranks.append(dict(zip(table["id"], table["rank"], strict=True)))
    assert ranks[0] == ranks[1]


def test_a_second_scan_reads_everything_back(result, poisoned):
    steps = []
    path = result.context.run.path
    again = scanned(path, poisoned[0], progress=lambda *step: steps.append(step))
    assert cached(again) == set(SCAN)
    assert {name: stage.key for name, stage in again.context.finished.items()} == {
        name: stage.key for name, stage in result.context.finished.items()
    }
    assert again.partition.fingerprint == result.partition.fingerprint
    assert steps == []


CHANGES = {
    "nothing": (CONFIG, set(SCAN)),
    "trigger detector": (
        replace(CONFIG, trigger_detector=replace(DETECTOR, net=replace(DETECTOR.net, epochs=3))),
        {"embeddings", "images", "early_model", "label_flow"},
    ),
    # Without a flagged label, nothing is fitted again and nothing changes.
    "label flow": (replace(CONFIG, label_flow=replace(FLOW, flag_loss=6.0)), set(SCAN)),
    "a threshold of the entropy map": (
        replace(CONFIG, entropy_map=replace(CONFIG.entropy_map, candidate=0.12)),
        {"embeddings", "images", "early_model", "label_flow"},
    ),
    "early-training model": (
        replace(CONFIG, early_model=replace(CONFIG.early_model, runs=2)),
        {"embeddings", "images", "label_flow"},
    ),
    "the seed": (replace(CONFIG, seed=1), {"embeddings", "images"}),
    "the image size": (replace(CONFIG, size=(12, 12)), {"embeddings", "label_flow"}),
    "what is done after the scan": (replace(CONFIG, by="retrain", architecture="shallow-4"), set(SCAN)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_setting_recomputes_what_stands_on_it_and_nothing_else(copied, poisoned, change):
    config, kept = CHANGES[change]
    assert cached(scanned(copied, poisoned[0], config)) == kept


def test_other_prompts_leave_the_pass_over_the_images_as_it_is(copied, poisoned):
    guide = ClipGuide("mini", templates=("a drawing of a {}",))
    again = scanned(copied, poisoned[0], guide=guide)
    assert cached(again) == {"embeddings", "images", "early_model", "label_flow"}


def test_another_size_is_read_once_and_kept(poisoned, tmp_path):
    size = replace(CONFIG, size=(12, 10))
    first, second = (scanned(tmp_path / "run", poisoned[0], size) for _ in range(2))
    assert first.data.images.shape == second.data.images.shape == (240, 12, 10, 3)
    assert first.images_key == first.context.finished["images"].key
    assert cached(second) == set(first.context.finished) >= set(SCAN) - {"removal"}


def test_a_class_that_the_detector_leaves_without_clean_samples_is_named(result, copied, poisoned):
    assert few_clean(result) == ()
    strict = replace(CONFIG, trigger_detector=replace(DETECTOR, clean=0.0))
    assert few_clean(scanned(copied, poisoned[0], strict)) == NAMES


@pytest.mark.parametrize("flagged", [DETECTOR.flagged, 1.0])
def test_progress_counts_every_stage_to_its_end(poisoned, tmp_path, flagged):
    steps: dict[str, list[tuple[int, int]]] = {}
    config = replace(CONFIG, trigger_detector=replace(DETECTOR, flagged=flagged))
    scanned(
        tmp_path / "run",
        poisoned[0],
        config,
        lambda title, done, total: steps.setdefault(title, []).append((done, total)),
    )
    stages = [scanning.EMBEDDINGS, scanning.IMAGES, scanning.EARLY_MODEL, scanning.TRIGGER_DETECTOR]
    # Where nothing is flagged, nothing is removed.
    stages += [scanning.REMOVAL] if flagged < 1 else []
    assert list(steps) == [stage.title for stage in stages]
    for counts in steps.values():
        done, total = zip(*counts, strict=True)
        assert list(done) == sorted(done)
        assert done[-1] == total[-1]
        assert len(set(total)) == 1


def count(settings) -> int:
    """Return the leaves of nested settings."""
    return sum(map(count, settings.values())) if isinstance(settings, dict) else 1


def test_a_defence_has_at_most_sixty_settings():
    assert count({"a": 1, "b": {"c": None, "d": (2, 3)}}) == 3
    assert count(asdict(DefenseConfig())) <= 60


LABELS = replace(CONFIG, label_flow=replace(FLOW, flag_loss=3.0, refit_flag_loss=3.0))


@pytest.fixture
def unsure_guide(monkeypatch):
    """Let the guide, which knows none of the classes and doubts no label, have no say in flags."""
    monkeypatch.setattr("clipguard.detection.label_flow.GUIDE_LOSS", 0.1)


@pytest.fixture(scope="module")
def label_only(tmp_path_factory):
    """Return the scan of a set with poisoned labels and no trigger, and the correct labels."""
    clean, _ = poisoned_set(600, 0.0)
    rows = np.random.default_rng(3).choice(np.flatnonzero(clean.labels != 0), 60, replace=False)
    labels = np.where(np.isin(np.arange(600), rows), 0, clean.labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipguard.detection.label_flow.GUIDE_LOSS", 0.1)
        folder = tmp_path_factory.mktemp("labels") / "run"
        return scanned(folder, replace(clean, labels=labels), LABELS), clean.labels


def test_label_only_poison_is_flagged_quarantined_and_gets_soft_labels(label_only):
    result, correct = label_only
    labels, partition = result.data.labels, result.partition
    poisoned, by_label = labels != correct, partition.has(State.LABEL)
    assert by_label[poisoned].mean() > 0.6
    assert by_label[~poisoned].mean() < 0.02
    assert partition.quarantined == (0,)
    soft = dict(zip(partition.soft_rows.tolist(), partition.soft_labels.argmax(1), strict=True))
    assert np.mean([soft[row] == correct[row] for row in np.flatnonzero(by_label & poisoned)]) > 0.9
    assert not labels[partition.soft_rows].any()
    rows = samples_of(result.context.run.path)
    assert np.array_equal(rows["reason"] == "label", by_label)
    assert set(rows["status"][by_label]) == {"flagged"}
    assert set(rows["trigger"][by_label]) == {0}


def test_the_refitted_probe_is_kept_and_fitted_anew_with_other_settings(label_only, unsure_guide):
    first, path = label_only[0], label_only[0].context.run.path
    again = scanned(path, first.data, LABELS)
    # Without a sample that is flagged for a trigger, nothing is removed.
    assert tuple(first.context.finished) == (*SCAN[:5], "label_flow_refit", *SCAN[6:])
    assert cached(again) == set(first.context.finished)
    assert again.partition.fingerprint == first.partition.fingerprint
    strict = replace(LABELS.label_flow, refit_flag_loss=4.0)
    refitted = scanned(path, first.data, replace(LABELS, label_flow=strict))
    assert not refitted.context.finished["label_flow_refit"].cached
    assert {"embeddings", "images", "early_model", "trigger_detector", "label_flow"} <= cached(refitted)
