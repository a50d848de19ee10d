"""runs.summary and pipeline.summary: what a run says of itself, and what of it is believed."""

import json
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from clipguard import __version__
from clipguard.clip.zero_shot import ClipGuide
from clipguard.compute.inference import classifier_logits
from clipguard.errors import ClipguardError
from clipguard.models.spec import ModelSpec, build
from clipguard.pipeline.defender import Defender
from clipguard.pipeline.summary import own_rates, write_summary
from clipguard.runs import read_table, verify_run
from clipguard.runs.summary import (
    SUMMARY,
    DataSummary,
    GuideSummary,
    Rates,
    RunSummary,
    StageSummary,
    Verdict,
    plain,
    read_summary,
)
from clipguard.seeds import Seed
from clipguard.types import Preprocessing, State
from tiny_runs import CONFIG, NAMES, poisoned_set, source_of

GUIDE = ClipGuide("mini")
SPEC = ModelSpec.sized(architecture="preactresnet18-4", num_classes=3, input_size=(16, 16))
SAMPLE = RunSummary(
    command="defend",
    version="0.1.0",
    seed=3,
    threads=2,
    device="cpu",
    run_dir="runs/one",
    verdict=Verdict(answer="undecided", reasons=["nothing above chance", "not built yet"]),
    data=DataSummary(
        location="./images", n=7, classes=["cat", "dög"], empty_classes=[], unreadable=1, size=(32, 24)
    ),
    guide=GuideSummary(name="mini", scale=100.0, agreement=0.5),
    partition={"clean": 5, "flagged_for_a_trigger": 2},
    few_clean=["cat"],
    stages={"read": StageSummary(title="read the images", seconds=1.5)},
    warnings=["a warning"],
    files={"report": "report.html"},
    before=Rates(measured_on="held-out samples", accuracy=0.75, n=4),
    after=Rates(
        measured_on="test set",
        accuracy=0.5,
        target_recall=0.25,
        attack_success=1.0,
        robust_accuracy=0.0,
        n=4,
        attack_n=3,
    ),
    detection={"auroc_suspicion": 0.9, "class_sizes": [3, 4]},
)


def written(folder, values):
    """Return the folder with these values in its summary."""
    (folder / SUMMARY).write_text(values if isinstance(values, str) else json.dumps(values))
    return folder


def refusal(folder):
    """Return the one line in which a summary is refused."""
    with pytest.raises(ClipguardError) as error:
        read_summary(folder)
    line = str(error.value)
    assert "\n" not in line
    assert str(folder / SUMMARY) in line or f"{folder} has no {SUMMARY}" in line
    return line


@pytest.mark.parametrize(
    "summary", [SAMPLE, msgspec.structs.replace(SAMPLE, before=None, after=None, detection=None)]
)
def test_what_is_written_is_what_is_read(tmp_path, summary):
    values = plain(summary)
    assert json.loads(json.dumps(values, allow_nan=False)).keys() == values.keys()
    assert read_summary(written(tmp_path, values)) == summary


def test_values_that_default_to_none_may_be_missing(tmp_path):
    values = {name: value for name, value in plain(SAMPLE).items() if name not in ("before", "after")}
    summary = read_summary(written(tmp_path, values))
    assert (summary.before, summary.after, summary.detection) == (None, None, SAMPLE.detection)


def paths(values, before=()):
    """Return the path of every field in nested structures."""
    for name, value in values.items():
        yield (*before, name)
        if name in ("verdict", "data", "guide", "before", "after"):
            yield from paths(value, (*before, name))


def changed(path, change):
    """Return the sample's values, with `change` applied to the structure that holds the field."""
    values = plain(SAMPLE)
    holder = values
    for name in path[:-1]:
        holder = holder[name]
    change(holder, path[-1])
    return values


FIELDS = list(paths(plain(SAMPLE)))
OPTIONAL = {
    "schema_version",
    "baseline",
    "reviews",
    "model",
    "before",
    "after",
    "detection",
    "competence",
    "second",
    "prompts",
    "quality",
    "skipped",
}
OPTIONAL |= set(Rates.__struct_fields__) - {"measured_on"}
OPTIONAL |= set(Verdict.__struct_fields__) - {"answer", "reasons"}


@pytest.mark.parametrize("path", [path for path in FIELDS if path[-1] not in OPTIONAL], ids="/".join)
def test_a_missing_field_is_refused_and_named(tmp_path, path):
    line = refusal(written(tmp_path, changed(path, lambda holder, name: holder.pop(name))))
    assert f"`{path[-1]}`" in line
    assert "is damaged" in line
    assert "delete it and run again" in line


@pytest.mark.parametrize("path", FIELDS, ids="/".join)
def test_a_field_of_another_kind_is_refused_and_named(tmp_path, path):
    other = 1 if path[-1] == "complete" else True
    line = refusal(written(tmp_path, changed(path, lambda holder, name: holder.update({name: other}))))
    assert ".".join(path) in line


@pytest.mark.parametrize("path", [(), ("verdict",), ("data",), ("guide",), ("before",)], ids="/".join)
def test_an_unknown_field_is_refused_and_named(tmp_path, path):
    values = changed((*path, "verdikt"), lambda holder, name: holder.update({name: 1}))
    assert "verdikt" in refusal(written(tmp_path, values))


def test_an_unknown_field_of_a_stage_is_refused(tmp_path):
    values = plain(SAMPLE)
    values["stages"]["read"]["planet"] = "Mars"
    assert "planet" in refusal(written(tmp_path, values))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 1.5),
        ("seed", "3"),
        ("warnings", "none"),
        ("warnings", [1]),
        ("partition", {"clean": "many"}),
        ("stages", {"read": {"title": "read", "seconds": "long"}}),
        ("few_clean", {"cat": 1}),
        ("files", ["report.html"]),
        ("data", {**plain(SAMPLE)["data"], "size": [32]}),
        ("data", {**plain(SAMPLE)["data"], "size": [32, 24, 3]}),
        ("before", {"measured_on": "test set", "accuracy": "good"}),
    ],
)
def test_a_value_of_another_kind_is_refused(tmp_path, name, value):
    assert f"$.{name}" in refusal(written(tmp_path, {**plain(SAMPLE), name: value}))


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "3", '"summary"', "\0", '{"command": "defend"}'])
def test_what_is_no_summary_is_refused_in_one_line(tmp_path, text):
    refusal(written(tmp_path, text))


def test_bytes_that_are_no_text_are_refused_in_one_line(tmp_path):
    (tmp_path / SUMMARY).write_bytes(b"\xff\xfe\x00")
    refusal(tmp_path)


def test_a_hostile_field_name_stays_in_one_line(tmp_path):
    refusal(written(tmp_path, {**plain(SAMPLE), "a\nclipguard: all is well\x1b[2J": 1}))


def test_an_unfinished_run_has_no_summary(tmp_path):
    assert "the run is not finished, run it again" in refusal(tmp_path)


@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 5000))
def test_a_summary_that_was_cut_off_is_refused(tmp_path, length):
    whole = json.dumps(plain(SAMPLE))
    refusal(written(tmp_path, whole[: length % len(whole)]))


@pytest.fixture(scope="module")
def source():
    return source_of(poisoned_set()[0])


@pytest.fixture(scope="module")
def fitted(source, tmp_path_factory):
    """Return a defender that trained its victim itself."""
    return Defender(GUIDE, tmp_path_factory.mktemp("fit") / "run", config=CONFIG).fit(source)


def test_the_summary_of_a_run_adds_up_and_is_what_was_published(fitted):
    before, after = own_rates(fitted)
    files, detection = {"samples": "samples.parquet"}, {"auroc_suspicion": 0.5}
    summary = write_summary(fitted, "defend", files=files, before=before, after=after, detection=detection)
    run = fitted.scan_.context.run
    assert read_summary(run.path) == summary
    assert (summary.before, summary.after, summary.files) == (before, after, files)
    assert (summary.command, summary.version, summary.seed) == ("defend", __version__, CONFIG.seed)
    assert (summary.verdict, summary.warnings) == (fitted.verdict_, fitted.warnings_)
    assert sum(summary.partition.values()) == summary.data.n == 240
    assert (summary.data.classes, summary.data.size, summary.data.unreadable) == ([*NAMES], (16, 16), 0)
    assert list(summary.stages) == list(fitted.stages_)
    classes = summary.guide.competence
    assert [entry.class_name for entry in classes] == [*NAMES]
    agreeing = sum(entry.n * entry.agreement for entry in classes) / sum(entry.n for entry in classes)
    assert agreeing == pytest.approx(summary.guide.agreement)
    assert summary.stages["unlearning"].title == "unlearn the flagged samples"
    for name, stage in fitted.stages_.items():
        assert summary.stages[name].seconds == pytest.approx(stage.seconds, abs=0.006)
    table = read_table(run.path / "samples.parquet")
    assert summary.partition["flagged_for_a_trigger"] == (table["reason"] == "trigger").sum() > 0
    assert summary.partition["clean"] == (table["status"] == "trusted").sum()
    assert summary.partition["uncertain"] == (table["reason"] == "uncertain").sum()
    # The published file is sealed.
    assert all(checked.status == "ok" for checked in verify_run(run.path))
    (run.path / SUMMARY).write_text(json.dumps(plain(summary)))
    assert any(checked.status != "ok" for checked in verify_run(run.path))


def test_the_summary_of_a_scan_has_no_rates(source, fitted):
    again = Defender(GUIDE, fitted.run_dir, config=CONFIG).scan(source)
    summary = write_summary(again, "scan", files={})
    assert (summary.before, summary.after, summary.detection) == (None, None, None)
    assert list(summary.stages) == list(again.stages_)


def accuracy(model, data, rows):
    return float((classifier_logits(model, data.images[rows]).argmax(1) == data.labels[rows]).mean())


def test_a_victim_trained_here_is_measured_on_what_it_has_not_learnt(fitted):
    scan = fitted.trained_on_
    rows = np.flatnonzero(fitted.partition_.clean & scan.partition.has(State.HELD_OUT))
    assert 0 < len(rows) <= 12
    for rates, model in zip(own_rates(fitted), (fitted.before_, fitted.model_), strict=True):
        expected = pytest.approx(accuracy(model, scan.data, rows))
        words = f"{len(rows)} held-out samples that the scan trusts, by their given labels"
        assert rates == Rates(measured_on=words, n=len(rows), accuracy=rates.accuracy)
        assert rates.accuracy == expected


def test_a_given_model_has_learnt_everything_and_its_rates_say_so(source, fitted):
    spec = replace(SPEC, preprocessing=Preprocessing(size=(12, 10)))
    defender = Defender(GUIDE, fitted.run_dir, config=CONFIG).fit(
        source, model=build(spec, Seed(0)), spec=spec
    )
    rows = np.flatnonzero(defender.partition_.clean)
    for rates, model in zip(own_rates(defender), (defender.before_, defender.model_), strict=True):
        words = f"{len(rows)} training samples that the scan trusts, by their given labels"
        assert (rates.measured_on, rates.n) == (words, len(rows))
        assert rates.accuracy == pytest.approx(accuracy(model, defender.trained_on_.data, rows))


def test_without_a_clean_sample_there_is_no_rate(fitted, source):
    again = Defender(GUIDE, fitted.run_dir, config=CONFIG).fit(source)
    none_clean = again.partition_.moved(again.partition_.clean, State.UNCERTAIN)
    again.scan_ = replace(again.scan_, partition=none_clean)
    assert own_rates(again) == (Rates(measured_on="nothing: no clean sample"),) * 2
