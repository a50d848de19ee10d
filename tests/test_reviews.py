"""Review marks: whose they are, and what a scan makes of them; nothing but the last word on a sample."""

import json
import shutil

import msgspec
import numpy as np
import pytest

from clipguard.errors import ClipguardError
from clipguard.outputs.reviews import review_words
from clipguard.outputs.weights import sample_weights
from clipguard.runs import read_json, read_table, verify_run
from clipguard.runs.reviews import REVIEWS, Review, matched, places_of
from clipguard.runs.samples_table import source_order
from tiny_runs import scanned_folder as scan

EARLY, LATE = "2026-01-01T10:00:00Z", "2026-02-01T10:00:00+02:00"


def review(sha256, name, decision="keep", at=EARLY, given_label=""):
    values = {"sha256": sha256, "id": name, "decision": decision, "by": "Ada", "reason": "seen", "at": at}
    return {**values, "given_label": given_label} if given_label else values


def table(*rows):
    names = ("sha256", "id", "given_label")
    return {
        name: np.array(values, object) for name, values in zip(names, zip(*rows, strict=True), strict=True)
    }


def placed(samples, *reviews):
    return places_of(samples, [convert(one) for one in reviews])


def convert(values):
    return msgspec.convert(values, Review)


def test_a_mark_is_of_the_image_under_its_label_and_of_several_copies_of_the_one_with_its_name():
    samples = table(
        ("a", "cat/1", "cat"), ("a", "dog/1", "dog"), ("b", "cat/2", "cat"), ("b", "cat/3", "cat")
    )
    assert placed(samples, review("a", "dog/1"), review("b", "cat/2"), review("b", "cat/3")) == [1, 2, 3]
    # Moved: by the hash, as long as one sample alone has it, under the same label.
    assert placed(samples, review("a", "gone", given_label="cat"), review("a", "gone")) == [0, -1]
    assert placed(samples, review("b", "gone", given_label="cat"), review("c", "cat/1")) == [-1, -1]
    # The same file under another label is another sample.
    others = [review(sha256, name, given_label="dog") for sha256, name in (("a", "cat/1"), ("b", "cat/2"))]
    assert placed(samples, *others) == [1, -1]


def test_of_several_marks_of_a_sample_the_latest_counts_whatever_their_order():
    samples = table(("a", "x", "cat"), ("b", "y", "cat"))
    marks = [
        review("a", "x", "drop", LATE),
        review("a", "x", "keep", EARLY),
        review("c", "z"),
        review("c", "z"),
    ]
    decisions, strangers = matched(samples, [convert(one) for one in marks])
    assert (decisions.tolist(), strangers) == (["drop", ""], 1)


@pytest.fixture
def used(poisoned_folder_and_run, tmp_path):
    """Return the folder of data, and a copy of the run folder."""
    source, run = poisoned_folder_and_run
    return source, shutil.copytree(run, tmp_path / "run")


def rows_of(run):
    """Return the samples by column, in the order of the source."""
    columns = read_table(run / "samples.parquet")
    order = source_order(columns["row"])
    return {name: values[order] for name, values in columns.items()}


def marks_of(run, keep=(), drop=()):
    """Return marks of rows of a run."""
    rows = rows_of(run)
    return [
        review(rows["sha256"][row], rows["id"][row], decision, given_label=rows["given_label"][row])
        for decision, some in (("keep", keep), ("drop", drop))
        for row in some
    ]


def write(path, marks):
    path.write_text(json.dumps({"schema_version": 1, "run": "x", "reviews": marks}))
    return path


def chosen(run):
    """Return two flagged rows, and two trusted ones."""
    status = rows_of(run)["status"]
    return tuple(np.flatnonzero(status == name)[:2].tolist() for name in ("flagged", "trusted"))


def test_the_next_scan_has_what_people_decided_and_the_scores_and_verdict_of_the_first(used):
    source, run = used
    before, verdict = rows_of(run), read_json(run / "summary.json")["verdict"]
    (keep, agreed), (drop, fine) = chosen(run)
    marks = [*marks_of(run, [keep, fine], [drop, agreed]), review("0" * 64, "gone.png")]
    write(run / REVIEWS, marks)
    made = scan(source, run)
    after, summary = rows_of(run), read_json(run / "summary.json")
    for name in before.keys() - {"status", "reason", "trigger"}:
        assert np.array_equal(before[name], after[name]), name
    expected = {keep: ("trusted", "reviewed", 0), drop: ("flagged", "reviewed", 0)}
    for row in range(len(before["row"])):
        states = [
            tuple(rows[name][row] for name in ("status", "reason", "trigger")) for rows in (before, after)
        ]
        assert states[1] == expected.get(row, states[0])
    assert summary["verdict"] == verdict
    reviews = {name: summary["reviews"][name] for name in summary["reviews"].keys() - {"file", "sha256"}}
    assert reviews == {"keep": 2, "drop": 2, "no_longer_flagged": 1, "newly_flagged": 1, "of_no_sample": 1}
    assert summary["partition"]["kept_by_review"] == summary["partition"]["dropped_by_review"] == 1
    listed = (run / "flagged.txt").read_text().splitlines()
    assert after["path"][drop] in listed
    assert after["path"][keep] not in listed
    words = " ".join(review_words(made.scan_.reviews))
    assert "2 samples kept, 2 dropped" in words
    assert "1 mark is of no sample here" in words


def test_without_its_marks_a_run_folder_is_as_before_and_its_seal_is_true(used):
    source, run = used
    before = (run / "samples.parquet").read_bytes()
    write(run / REVIEWS, marks_of(run, chosen(run)[0]))
    scan(source, run)
    assert {one.path for one in verify_run(run) if one.status != "ok"} == set()
    marks = json.loads((run / REVIEWS).read_text())
    write(run / REVIEWS, marks["reviews"][:1])
    assert [(one.path, one.status) for one in verify_run(run) if one.status != "ok"] == [(REVIEWS, "changed")]
    (run / REVIEWS).unlink()
    scan(source, run)
    assert (run / "samples.parquet").read_bytes() == before
    assert {one.path for one in verify_run(run) if one.status != "ok"} == set()
    assert read_json(run / "summary.json")["reviews"] is None


def test_marks_go_with_moved_files_and_not_with_new_labels_into_a_run_with_a_baseline(used, tmp_path):
    source, run = used
    keep = chosen(run)[0]
    rows = rows_of(run)
    write(run / REVIEWS, marks_of(run, keep))
    other = shutil.copytree(source, tmp_path / "other")
    moved, relabelled = (other / rows["path"][row] for row in keep)
    moved.rename(moved.with_name("moved.png"))
    relabelled.rename(other / ("dog" if relabelled.parent.name != "dog" else "frog") / "relabelled.png")
    made = scan(other, tmp_path / "second", baseline=run)
    assert (made.scan_.reviews.file, made.scan_.reviews.keep) == (str(run / REVIEWS), 1)
    assert made.scan_.reviews.of_no_sample == 1
    after = rows_of(tmp_path / "second")
    place = after["path"].tolist().index(f"{moved.parent.name}/moved.png")
    assert after["status"][place] == "trusted"
    # The run folder has them now, too: page, `apply` and the next scan find them there.
    assert (tmp_path / "second" / REVIEWS).read_bytes() == (run / REVIEWS).read_bytes()


def test_a_file_that_would_replace_other_marks_is_refused_and_one_that_has_them_too_is_not(used, tmp_path):
    source, run = used
    keep = chosen(run)[0]
    write(run / REVIEWS, marks_of(run, keep[:1]))
    other = write(tmp_path / "other.json", marks_of(run, keep[1:]))
    before = (run / REVIEWS).read_bytes()
    with pytest.raises(ClipguardError, match=r"1 review marks of .* are not in .*other\.json"):
        scan(source, run, reviews=other)
    assert (run / REVIEWS).read_bytes() == before
    both = write(tmp_path / "both.json", marks_of(run, keep))
    assert scan(source, run, reviews=both).scan_.reviews.no_longer_flagged == 2
    assert (run / REVIEWS).read_bytes() == both.read_bytes()


def test_damaged_marks_stop_a_scan_before_any_work(used):
    source, run = used
    (run / REVIEWS).write_text("{")
    told = []
    with pytest.raises(ClipguardError, match="review marks"):
        scan(source, run, progress=lambda *step: told.append(step))
    assert told == []


def test_a_retraining_learns_what_is_kept_and_not_what_is_dropped(used):
    source, run = used
    (keep, flagged), (drop, _) = chosen(run)
    write(run / REVIEWS, marks_of(run, [keep], [drop]))
    partition = scan(source, run).partition_
    assert partition.clean[[keep, flagged, drop]].tolist() == [True, False, False]
    assert partition.flagged[[keep, flagged, drop]].tolist() == [False, True, True]
    assert sample_weights(run)[[keep, flagged, drop]].tolist() == [1, 0, 0]
