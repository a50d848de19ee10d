"""compute.lanes and compute.threads: the same results in any number of lanes, and nothing is left behind."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from clipguard.clip.zero_shot import ClipGuide
from clipguard.compute.cores import cores, quota
from clipguard.compute.device import CPU, computing_on, current_device
from clipguard.compute.lanes import AbandonedError, go_on, in_lanes, in_turn, lanes_here, ordered_map
from clipguard.compute.small_nets import SmallNetConfig, train_small_nets
from clipguard.compute.threads import (
    available_threads,
    granted_threads,
    intra_op,
    one_blas_thread,
    one_thread,
    training_threads,
)
from clipguard.compute.training import cross_entropy
from clipguard.errors import ClipguardError
from clipguard.seeds import Seed


def blas() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def of_new_thread() -> int:
    """Return how many threads torch takes in a thread that is started now."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


@contextmanager
def callers(number: int):
    """Run the block in a process whose threads are set, as by its owner."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_results_come_in_order_whoever_is_the_first_to_end():
    turns = [threading.Event() for _ in range(3)]

    def work(place: int) -> int:
        # Each waits for the one after it.
        if place < 2:
            assert turns[place + 1].wait(20)
        turns[place].set()
        return place

    assert in_lanes([partial(work, place) for place in range(3)], 3) == [0, 1, 2]
    assert in_lanes([], 3) == []


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_lane_computes_with_one_thread_and_leaves_the_callers_number(lanes):
    with callers(3):
        seen = in_lanes([lambda: (torch.get_num_threads(), available_threads(), blas())] * 4, lanes)
        assert all(one == 1 and set(pools) <= {1} for one, _, pools in seen)
        assert torch.get_num_threads() == of_new_thread() == 3
        if lanes > 1:
            assert {inside for _, inside, _ in seen} == {1}


def test_one_thread_and_an_exception_leave_all_numbers_as_they_were():
    before = blas()

    def fail() -> None:
        with one_thread():
            assert torch.get_num_threads() == 1
            assert set(blas()) <= {1}
            raise ZeroDivisionError

    with callers(3):
        with pytest.raises(ZeroDivisionError):
            fail()
        assert torch.get_num_threads() == of_new_thread() == 3
        with intra_op(2):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 3
    assert blas() == before


def test_blocks_of_one_blas_thread_may_overlap_in_any_way():
    before, first, second = blas(), one_blas_thread(), one_blas_thread()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert set(blas()) <= {1}
    second.__exit__(None, None, None)
    assert blas() == before


def test_the_first_failure_in_order_is_raised_and_what_is_not_begun_is_left_out():
    begun, released = [], threading.Event()

    def fail(name: str) -> None:
        begun.append(name)
        # The one behind fails first.
        (released.set if name == "later" else partial(released.wait, 20))()
        raise ValueError(name)

    def endless() -> None:
        begun.append("rest")
        while True:
            go_on()

    tasks = [partial(fail, "first"), partial(fail, "later"), *[endless] * 50]
    with callers(3):
        with pytest.raises(ValueError, match="first"):
            in_lanes(tasks, 2)
        assert torch.get_num_threads() == of_new_thread() == 3
    # One in each lane, at most, before the first has failed.
    assert begun.count("rest") <= 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lane")]


def test_a_lane_that_nobody_waits_for_stops_when_it_asks():
    ended, started = [], threading.Event()

    def endless() -> None:
        started.set()
        try:
            while True:
                go_on()
        except AbandonedError:
            ended.append(True)
            raise

    def fail() -> None:
        assert started.wait(20)
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        in_lanes([fail, endless], 2)
    assert ended == [True]
    go_on()


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_a_map_is_lazy_and_holds_no_more_than_it_may(ahead):
    taken = []

    def items():
        for number in range(20):
            taken.append(number)
            yield number

    results = ordered_map(lambda number: number * number, items(), 2, ahead)
    assert taken == []
    for place, value in enumerate(results):
        assert value == place * place
        assert len(taken) <= place + ahead
    assert len(taken) == 20


def test_a_map_that_is_given_up_ends_its_lanes():
    with callers(3):
        results = ordered_map(lambda number: number, iter(range(100)), 2, 4)
        assert next(results) == 0
        results.close()
        assert of_new_thread() == torch.get_num_threads() == 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lane")]


def test_what_a_map_raises_comes_where_its_result_would_have_come():
    def half(number: int) -> float:
        return 1 / (3 - number)

    results = ordered_map(half, range(6), 2, 3)
    assert [next(results) for _ in range(3)] == [1 / 3, 1 / 2, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_lanes_inside_a_lane_are_one_and_know_the_device():
    with granted_threads(2), computing_on(CPU):
        inside = in_lanes([lambda: (lanes_here(), current_device())] * 2)
    assert inside == [(1, CPU)] * 2


def test_a_callback_is_called_by_one_lane_at_a_time():
    busy, overlaps = threading.Semaphore(1), []

    def callback(number: int) -> None:
        if not busy.acquire(blocking=False):
            overlaps.append(number)
            return
        sum(range(20_000))
        busy.release()

    guarded = in_turn(callback)
    in_lanes([partial(guarded, number) for number in range(200)], 4)
    assert overlaps == []


def test_threads_come_from_the_caller_then_the_environment_then_the_cores(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert available_threads() == training_threads() == 3
    with granted_threads(9):
        assert (available_threads(), training_threads()) == (9, 4)
        with granted_threads(None):
            assert available_threads() == 9
    with granted_threads(None):
        assert available_threads() == 3
    for unset in ("", "many", "0"):
        monkeypatch.setenv("OMP_NUM_THREADS", unset)
        assert available_threads() == cores() >= 1
    with pytest.raises(ClipguardError, match="0 threads: give 1 or more"), granted_threads(0):
        pass


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "damaged"}, None),
        ({}, None),
    ],
)
def test_a_containers_quota_counts(tmp_path, files, expected):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert quota(tmp_path) == expected


IMAGES = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(60) % 3


@pytest.mark.parametrize("architecture", ["shallow-4", "torchvision.models:mobilenet_v3_small"])
def test_small_nets_are_the_same_to_the_bit_in_any_number_of_lanes(architecture):
    # The second one has dropout, which draws from the one generator that all lanes share.
    config = SmallNetConfig(
        architecture=architecture,
        epochs=2,
        batch_size=16,
        optimizer="adam",
        lr=1e-3,
        schedule="constant",
        folds=2,
        runs=2,
    )
    results, states = [], []
    for lanes in (1, 3):
        epochs = []
        with granted_threads(lanes):
            nets = train_small_nets(
                config, IMAGES, 3, cross_entropy(LABELS), LABELS >= 0, Seed(0), epochs.append
            )
        assert sorted(epochs) == [1] * 4 + [2] * 4
        results.append(nets)
        states.append(torch.random.get_rng_state())
    one, other = results
    assert np.array_equal(one.logits[:], other.logits[:])
    for first, second in zip(one.nets, other.nets, strict=True):
        weights = second.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in first.state_dict().items())
    assert torch.equal(*states)


def test_embeddings_are_the_same_to_the_bit_in_any_number_of_lanes():
    clip = ClipGuide("mini").clip
    images = np.random.default_rng(1).integers(0, 256, (70, 16, 16, 3), dtype=np.uint8)
    embeddings = []
    for lanes in (1, 3):
        with granted_threads(lanes):
            embeddings.append(clip.embed_images(images))
    assert np.array_equal(*embeddings)
