"""What a scan holds in memory: never n x k values, no copy of all images, no text for each cell."""

import importlib
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from clipguard.clip.zero_shot import Cosines
from clipguard.detection.early_model import ResidualConfig, early_model_scores, residual_loss
from clipguard.detection.entropy_map import label_nll, opinion
from clipguard.detection.label_flow import LabelFlowConfig, LabelView, label_only_poison
from clipguard.detection.linear_probe import linear_probe
from clipguard.detection.trigger_detector import TriggerDetectorConfig, trigger_scores
from clipguard.detection.trigger_inversion import invert_triggers
from clipguard.mitigation.trigger_augmentation import trigger_augmented
from clipguard.outputs.samples import read_samples, read_texts
from clipguard.pipeline.samples import ranks
from clipguard.runs import ShardedArray, read_rows, read_table, write_array, write_table
from clipguard.seeds import Seed
from clipguard.types import ImageSet, Rows, Scores, State, partition_of
from tiny_report import make_run
from tiny_runs import NET, poisoned_set

N, K, D = 20_000, 500, 16
DENSE = 4 * N * K
"""Bytes of n x k values in single precision."""


@pytest.fixture(scope="module")
def large():
    """Return labels, embeddings and a guide of many samples and classes."""
    # Code that is imported when it is first needed would count as well.
    importlib.import_module("sklearn.discriminant_analysis")
    importlib.import_module("torch._dynamo")
    draw = np.random.default_rng(0)
    labels, centres = np.arange(N) % K, draw.normal(size=(K, D))
    embeddings = (centres[labels] + draw.normal(size=(N, D))).astype(np.float32)
    guide = Scores(logits=Cosines(embeddings, centres), scale=1.0, source="guide")
    return labels, embeddings, guide


def peak(compute):
    """Return the bytes that a computation holds at most, beside what was there before."""
    tracemalloc.start()
    try:
        compute()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_measure_sees_n_by_k_values(large):
    assert peak(lambda: large[2].logits[:]) > DENSE


def test_losses_of_the_guide_are_made_a_few_at_a_time(large):
    labels, _, guide = large
    assert peak(lambda: opinion(guide, labels)) < DENSE / 2


def test_a_linear_probe_keeps_a_loss_a_sample_and_soft_labels_of_few(large):
    labels, embeddings, _ = large
    view = LabelView(labels=labels, num_classes=K, guide_nll=np.ones(N), unexplained=np.ones(N, dtype=bool))

    def flow():
        probe = linear_probe(embeddings, labels, np.arange(K) < 3, np.zeros(N, dtype=bool), Seed(0))
        label_only_poison(view, probe, LabelFlowConfig())

    assert peak(flow) < DENSE / 2


def blank(labels):
    """Return a set of tiny images that are all alike."""
    images = np.zeros((len(labels), 4, 4, 3), np.uint8)
    names = tuple(f"class {number}" for number in range(K))
    ids = tuple(map(str, range(len(labels))))
    return ImageSet(images=images, labels=labels, ids=ids, class_names=names, fingerprint="blank")


def test_trigger_inversion_sums_what_the_guide_sees(large):
    labels, _, guide = large
    state = np.where(np.arange(N) % 5 == 0, State.TRIGGER, State.CLEAN).astype(np.uint8)
    data, partition = blank(labels), partition_of(state, np.zeros(N), K)
    assert peak(lambda: invert_triggers(data, partition, guide, Seed(0))) < DENSE / 2


def test_an_early_training_model_keeps_a_loss_a_sample(large):
    labels, _, guide = large
    config = ResidualConfig(
        architecture="shallow-4", epochs=1, batch_size=500, optimizer="sgd", lr=0.01, schedule="constant"
    )
    data = blank(labels)
    assert peak(lambda: residual_loss(labels, guide)) < DENSE / 10
    assert peak(lambda: label_nll(early_model_scores(data, guide, config, Seed(0)), labels)) < DENSE / 2


def sharded(folder, values):
    """Return the same values as rows in three files."""
    folder.mkdir(parents=True)
    files = [folder / f"{number}.npy" for number in range(3)]
    for file, part in zip(files, np.array_split(values, [50, 130]), strict=True):
        write_array(file, part)
    return ShardedArray(files)


def test_rows_in_files_give_the_very_results_of_arrays_in_memory(tmp_path):
    data, poisoned = poisoned_set()
    draw = np.random.default_rng(0)
    embeddings = draw.normal(size=(240, 8)).astype(np.float32)
    centres, state = draw.normal(size=(3, 8)), np.where(poisoned, State.TRIGGER, State.CLEAN)
    partition, results = partition_of(state.astype(np.uint8), np.zeros(240), 3), []
    detector = TriggerDetectorConfig(net=replace(NET, folds=2))
    residual = ResidualConfig(
        architecture="shallow-8", epochs=2, batch_size=16, optimizer="adam", lr=0.01, schedule="constant"
    )
    in_files = sharded(tmp_path / "images", data.images), sharded(tmp_path / "embeddings", embeddings)
    assert all(isinstance(rows, Rows) for rows in in_files)
    for images, vectors in ((data.images, embeddings), in_files):
        here = replace(data, images=images)
        guide = Scores(logits=Cosines(vectors, centres), scale=3.0, source="guide")
        many = partition.moved(np.arange(60), State.TRIGGER)
        (trigger,) = invert_triggers(here, many, guide, Seed(0))
        longer, _, scores = trigger_augmented(here, partition, guide, [trigger], 0.5, Seed(0))
        results.append(
            (
                *opinion(guide, data.labels),
                label_nll(early_model_scores(here, guide, residual, Seed(0)), data.labels),
                trigger_scores(here, partition, vectors, detector, Seed(0)).probability,
                *linear_probe(vectors, data.labels, np.ones(3, bool), np.zeros(240, bool), Seed(0)),
                trigger.scale,
                trigger.shift,
                longer.images[:],
                scores.logits[:],
            )
        )
    for one, other in zip(*results, strict=True):
        assert one.tobytes() == other.tobytes()


def test_scores_of_a_sample_do_not_depend_on_which_are_asked_for_together(large):
    guide = large[2]
    few = np.random.default_rng(1).permutation(N)[:300]
    every = guide.logits[:]
    assert np.array_equal(guide.logits[few], every[few])
    assert all(np.array_equal(guide.logits[few[i : i + 1]], every[few[i : i + 1]]) for i in range(50))
    assert guide.logits.shape == every.shape
    assert every.dtype == np.float32


def test_samples_are_ranked_by_suspicion_then_by_name():
    draw = np.random.default_rng(0)
    ids = [f"{'é' * (i % 3)}img{i:04d}\U0001f4f7"[i % 2 :] for i in draw.permutation(300)]
    suspicion = draw.integers(0, 20, 300) / 20
    order = sorted(range(300), key=lambda row: (-suspicion[row], ids[row]))
    expected = np.empty(300, np.int64)
    expected[order] = np.arange(1, 301)
    assert np.array_equal(ranks(ids, suspicion), expected)


def test_equal_texts_of_a_table_are_one_object_and_nulls_stay_nulls(tmp_path):
    texts = ["flagged", "trusted", None, "set aside"] * 50
    ids = [f"name {number}" for number in range(200)]
    write_table(tmp_path / "t.parquet", {"id": ids, "status": texts, "n": np.arange(200)})
    table = read_table(tmp_path / "t.parquet")
    assert table["status"].tolist() == texts
    assert len({id(text) for text in table["status"]}) == 4
    assert table["id"].tolist() == ids
    assert list(read_table(tmp_path / "t.parquet", ["n", "missing"])) == ["n"]


def test_some_rows_of_a_table_come_in_the_order_that_they_are_asked_for(tmp_path, monkeypatch):
    names = np.array([f"name {number}" for number in range(100_000)], object)
    write_table(tmp_path / "t.parquet", {"id": names, "n": np.arange(100_000)})
    rows = np.array([99_999, 0, 70_000, 65_536, 65_535, 0])
    found = read_rows(tmp_path / "t.parquet", rows, ["id", "missing"])
    assert found == {"id": names[rows].tolist()}
    assert read_rows(tmp_path / "t.parquet", rows[:0], ["n"]) == {"n": []}


def test_the_page_reads_the_names_of_the_samples_that_it_shows(tmp_path):
    n, name = 30_000, "x" * 200
    run = make_run(tmp_path / "run", n=n, ids=[f"{name}{number}" for number in range(n)], side=2)
    samples, partition = read_samples(run, order="table")
    assert len(partition) == n
    assert all(values.dtype.kind in "iuf" for values in samples.values())
    assert read_texts(run, np.array([0, n - 6]))["id"] == [f"{name}{n - 1}", f"{name}5"]
    # A text a sample would be more than that.
    assert peak(lambda: read_samples(run, order="table")) < 150 * n
    assert peak(lambda: read_texts(run, np.arange(100))) < 50 * n
