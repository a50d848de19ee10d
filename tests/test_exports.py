"""`clipguard export`: each format is opened by the program that it is made for, or by its rules."""

import csv
import json
import re
from pathlib import Path
from urllib.parse import unquote

import jsonschema
import numpy as np
import pandas as pd
import pytest

from clipguard.runs import read_json, read_table, verify_run, write_json, write_table
from clipguard.runs.samples_table import COLUMNS, source_order
from clipguard.runs.summary import read_summary
from sarif_rules import SARIF
from tiny_report import make_run

HOSTILE = [
    "=cmd|'/c calc'!A0",
    "a\nb.png",
    "\x1b[31mred.png",
    "[x](http://evil) {0} \\.png",
    "ü ñ%20.png",
    "-1.png",
]
FORMATS = ("csv", "jsonl", "datalab", "fiftyone", "sarif")
DOCUMENT = Path(__file__).parents[1] / "docs" / "results-format.md"


@pytest.fixture
def run(tmp_path):
    """Return a run whose 15 flagged samples have hostile names among them."""
    ids = [f"train/{number}.png" for number in range(150 - len(HOSTILE))] + HOSTILE
    return make_run(tmp_path / "run", ids=ids)


@pytest.fixture
def exported(clipguard, run, tmp_path):
    def export(form):
        ran = clipguard("export", run, "--to", form, "-o", tmp_path / f"out.{form}")
        assert (ran.code, ran.err) == (0, "")
        return tmp_path / f"out.{form}"

    return export


def test_csv_has_every_column_and_no_cell_that_is_a_formula_or_leaves_its_line(exported, run):
    text = exported("csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert list(rows[0]) == [column.name for column in COLUMNS]
    assert len(rows) == 150 == text.count("\n") - 1
    table = read_table(run / "samples.parquet")
    assert [float(row["poison_score"]) for row in rows] == table["poison_score"].tolist()
    assert {row["trigger_score"] for row in rows} == {""}
    assert "\x1b" not in text
    assert {row["id"][:2] for row in rows if row["id"][0] in "'\\"} == {"'=", "'-", "\\x"}


def test_json_lines_have_every_value_exactly(exported, run):
    rows = [json.loads(line) for line in exported("jsonl").read_text().splitlines()]
    table = read_table(run / "samples.parquet")
    assert [row["id"] for row in rows] == table["id"].tolist()
    assert set(HOSTILE) <= {row["id"] for row in rows}
    assert [row["poison_score"] for row in rows] == table["poison_score"].tolist()
    assert {row["trigger_score"] for row in rows} == {None}
    frame = pd.read_json(exported("jsonl"), lines=True)
    assert (frame["status"] == "flagged").sum() == 15


def documented(words):
    """Return the Python block of the documentation that holds the words."""
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    return next(block for block in blocks if words in block)


def test_datalab_reports_the_findings_as_its_issues(exported, run, tmp_path, monkeypatch, capsys):
    exported("datalab").rename(tmp_path / "datalab.parquet")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(documented("Datalab("), names)
    lab, table = names["lab"], read_table(run / "samples.parquet")
    order = source_order(table["row"])
    issues = lab.get_issues()
    assert np.array_equal(issues["is_backdoor_issue"], table["reason"][order] == "trigger")
    assert np.array_equal(issues["is_changed_label_issue"], table["reason"][order] == "label")
    np.testing.assert_allclose(issues["backdoor_score"], 1 - table["poison_score"][order])
    np.testing.assert_allclose(issues["changed_label_score"], np.exp(-table["guide_nll"][order]))
    summary = lab.get_issue_summary().set_index("issue_type")["num_issues"].to_dict()
    assert summary == {"backdoor": 14, "changed_label": 1}
    capsys.readouterr()
    lab.report()
    assert "Images that clipguard flags for a trigger." in capsys.readouterr().out


def test_fiftyone_finds_each_image_by_its_name_without_ending_and_its_label_with_attributes(exported, run):
    # As the documentation of FiftyOneImageClassificationDataset describes labels.json: no classes, so that
    # each target is the label itself; keys are paths below the folder of images, without their endings.
    value = json.loads(exported("fiftyone").read_text())
    assert set(value) == {"labels"}
    table = read_table(run / "samples.parquet")
    for place, name in enumerate(table["path"]):
        target = value["labels"][str(Path(name).with_suffix(""))]
        assert set(target) == {"label", "attributes"}
        assert target["label"] == table["given_label"][place]
        assert target["attributes"]["status"] == table["status"][place]
        assert target["attributes"]["poison_score"] == table["poison_score"][place]
    assert len(value["labels"]) == 150


@pytest.mark.parametrize("kind", ["tar", "parquet", "arrays"])
def test_fiftyone_is_refused_where_samples_have_paths_that_are_no_files(clipguard, run, kind):
    manifest = read_json(run / "manifest.json")
    manifest["source"]["kind"] = kind
    write_json(run / "manifest.json", manifest)
    ran = clipguard("export", run, "--to", "fiftyone")
    assert ran.code == 2
    assert "data without image files" in ran.err
    assert not (run / "fiftyone.json").exists()


def test_fiftyone_is_refused_where_two_images_differ_in_their_ending_alone(clipguard, run):
    table = read_table(run / "samples.parquet")
    path = table["path"].copy()
    path[1] = str(Path(path[0]).with_suffix(".other"))
    write_table(run / "samples.parquet", table | {"path": path}, ["trigger_score"])
    ran = clipguard("export", run, "--to", "fiftyone")
    assert ran.code == 2
    assert "differ only in their ending" in ran.err
    assert not (run / "fiftyone.json").exists()


def test_sarif_follows_its_rules_and_names_every_flagged_sample(exported, run):
    log = json.loads(exported("sarif").read_text())
    jsonschema.validate(log, SARIF)
    table = read_table(run / "samples.parquet")
    (only,) = log["runs"]
    results = only["results"]
    places = [result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for result in results]
    folder = read_summary(run).data.location.removeprefix("./")
    assert [unquote(place) for place in places] == [f"{folder}/{path}" for path in table["path"][:15]]
    rules = [rule["id"] for rule in only["tool"]["driver"]["rules"]]
    assert [rules[result["ruleIndex"]] for result in results] == table["reason"][:15].tolist()
    ranks = [result["rank"] for result in results]
    assert ranks == sorted(ranks, reverse=True)
    marks = [result["partialFingerprints"]["imageAndLabel/v1"] for result in results]
    assert [mark.split(":") for mark in marks] == [
        [sha256, label] for sha256, label in zip(table["sha256"][:15], table["given_label"][:15], strict=True)
    ]
    # What viewers would take for links or placeholders is escaped; no text leaves its line.
    texts = [result["message"]["text"] for result in results]
    assert not any(re.search(r"(?<!\\)[\[\]]", text) or re.search(r"(?<!\{)\{(?!\{)", text) for text in texts)
    assert all(text.isprintable() for text in texts)


def test_sarif_without_paths_names_the_samples_and_is_valid(clipguard, run, tmp_path):
    table = read_table(run / "samples.parquet")
    write_table(run / "samples.parquet", table | {"path": np.full(150, "", object)}, ["trigger_score"])
    assert clipguard("export", run, "--to", "sarif", "-o", tmp_path / "a.sarif").code == 0
    log = json.loads((tmp_path / "a.sarif").read_text())
    jsonschema.validate(log, SARIF)
    names = [
        one["locations"][0]["logicalLocations"][0]["fullyQualifiedName"] for one in log["runs"][0]["results"]
    ]
    assert "-1.png" in names


def test_the_rules_see_what_sarif_forbids(exported):
    log = json.loads(exported("sarif").read_text())
    result = log["runs"][0]["results"][0]
    for damage in ({"level": "bad"}, {"rank": 101}, {"message": {}}, {"ruleIndex": "0"}, {"row": 1}):
        damaged = {**log, "runs": [{**log["runs"][0], "results": [{**result, **damage}]}]}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(damaged, SARIF)


def test_microsofts_tool_reads_the_sarif_file(exported):
    loader = pytest.importorskip("sarif.loader", reason="the package sarif-tools is not installed")
    file = loader.load_sarif_file(str(exported("sarif")))
    assert file.get_result_count() == 15
    counts = file.get_report().get_issue_type_histogram_for_severity("error")
    assert sorted(counts.values()) == [1, 14]
    assert any("ü ñ" in record["Location"] or "%C3%BC" in record["Location"] for record in file.get_records())


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_lies_in_the_run_folder_and_is_sealed(clipguard, run, form):
    make_run(run)
    value = clipguard("export", run, "--to", form, "--json").json
    assert Path(value["file"]).parent == run
    statuses = {one.path: one.status for one in verify_run(run)}
    assert statuses[Path(value["file"]).name] == "ok"


@pytest.mark.parametrize("form", FORMATS)
def test_an_unfinished_run_is_one_line_and_no_file(clipguard, run, form, tmp_path):
    (run / "samples.parquet").unlink()
    ran = clipguard("export", run, "--to", form, "-o", tmp_path / "out")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "the run is not finished" in ran.err
    assert not list(tmp_path.glob("out*"))
