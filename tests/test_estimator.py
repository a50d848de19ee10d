"""estimator: scikit-learn's contract, any door for data, progress, pandas, the command line's files."""

import copy
import inspect
import json
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from clipguard import ClipguardError, ClipGuide, Defender, DefenseConfig
from clipguard.compute.engine import LocalEngine
from clipguard.estimator import OF_FIT, OF_SCAN
from clipguard.runs import read_table
from clipguard.runs.summary import plain, read_summary
from tiny_data import CommandLine, few_steps, image_folder, tree
from tiny_runs import CONFIG, NAMES, poisoned_set, source_of

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def data():
    return poisoned_set()[0]


@pytest.fixture(scope="module")
def scanned(data, tmp_path_factory):
    defender = Defender("mini", tmp_path_factory.mktemp("scan") / "run", config=CONFIG, progress=False)
    return defender.scan(data.pixels, data.labels, classes=NAMES)


@pytest.fixture(scope="module")
def fitted(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("fit") / "run"
    return Defender("mini", run, config=CONFIG, progress=False).fit(data.pixels, data.labels, classes=NAMES)


@pytest.fixture
def unfitted(tmp_path):
    return Defender("mini", tmp_path / "run", config=CONFIG, progress=False)


def test_parameters_are_stored_as_they_are_and_nothing_is_done(tmp_path):
    values = {
        "guide": ClipGuide("mini"),
        "run_dir": tmp_path / "run",
        "config": CONFIG,
        "progress": print,
        "engine": LocalEngine(),
        "embeddings": tmp_path,
        "second_guide": "mini",
        "device": "cpu",
        "threads": 2,
    }
    made = Defender(**values)
    assert set(values) <= set(inspect.signature(Defender).parameters) == set(vars(made))
    assert all(made.get_params(deep=False)[name] is vars(made)[name] is values[name] for name in values)
    assert not (tmp_path / "run").exists()


def test_a_parameter_can_be_set_and_an_unknown_one_is_refused(unfitted):
    assert unfitted.set_params(device="cpu", threads=2) is unfitted
    assert (unfitted.device, unfitted.threads) == ("cpu", 2)
    with pytest.raises(ValueError, match="Invalid parameter 'gid'"):
        unfitted.set_params(gid="mini")


def test_a_clone_has_equal_parameters_and_no_results(scanned):
    copied = clone(scanned)
    assert copied is not scanned
    assert copied.get_params() == scanned.get_params()
    assert set(vars(copied)) == set(scanned.get_params())


def test_a_clone_of_a_guide_reads_alike(tmp_path):
    guide = ClipGuide("mini", templates=("a {}",))
    assert clone(Defender(guide)).guide == guide
    assert clone(Defender(guide)).guide.fingerprint == guide.fingerprint


def test_the_text_of_a_defender_is_a_call_with_what_was_changed():
    assert repr(Defender()) == "Defender()"
    assert repr(Defender(guide="mini", device="cpu")) == "Defender(device='cpu', guide='mini')"


def test_every_parameter_and_every_attribute_of_a_result_is_documented():
    text = inspect.getdoc(Defender)
    parameters = Defender().get_params()
    assert [name for name in parameters if f"    {name}: " not in text] == []
    assert [name for name in OF_SCAN | OF_FIT if f"    {name}: " not in text] == []


@pytest.mark.parametrize("name", sorted(OF_SCAN | OF_FIT))
def test_what_is_not_there_yet_names_the_call_that_makes_it(unfitted, name):
    call = r"call scan\(X\) or fit\(X\) first" if name in OF_SCAN else r"call fit\(X\) first"
    with pytest.raises(NotFittedError, match=f"no {name} yet: {call}"):
        getattr(unfitted, name)
    assert not hasattr(unfitted, name)


def test_unfitted_use_says_so_and_a_typing_error_is_an_ordinary_one(unfitted, scanned):
    with pytest.raises(NotFittedError, match="call scan"):
        unfitted.to_pandas()
    with pytest.raises(NotFittedError):
        check_is_fitted(unfitted)
    check_is_fitted(scanned)
    with pytest.raises(NotFittedError, match=r"no model_ yet: call fit\(X\) first"):
        scanned.model_  # noqa: B018  # the look-up itself fails
    with pytest.raises(AttributeError, match="no attribute 'verdict'") as error:
        unfitted.verdict  # noqa: B018  # as above
    assert not isinstance(error.value, NotFittedError)


def test_all_results_of_a_scan_and_of_a_fit_are_there(scanned, fitted):
    assert [name for name in OF_SCAN if not hasattr(scanned, name)] == []
    assert [name for name in OF_SCAN | OF_FIT if not hasattr(fitted, name)] == []


class Pairs:
    """A data set as torchvision's are."""

    def __init__(self, data):
        self.data, self.classes = data, list(data.class_names)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, row):
        return Image.fromarray(self.data.pixels[row]), int(self.data.labels[row])


def test_arrays_a_source_and_a_list_of_pairs_give_the_same_samples(data, tmp_path, monkeypatch):
    few_steps(monkeypatch)
    few = data.take(np.arange(60))
    inputs = ((few.pixels, few.labels, NAMES), (source_of(few), None, None), (Pairs(few), None, None))
    guides = ("mini", ClipGuide("mini"), "mini")
    tables = []
    for number, ((images, labels, names), guide) in enumerate(zip(inputs, guides, strict=True)):
        defender = Defender(guide, tmp_path / str(number), config=CONFIG, progress=False)
        tables.append(defender.scan(images, labels, classes=names).samples_)
    for other in tables[1:]:
        for name in ("label", "status", "guide_nll", "early_nll", "trigger_score", "q_value"):
            assert np.array_equal(tables[0][name], other[name]), name


def test_names_of_classes_go_with_a_path(unfitted, data, tmp_path, monkeypatch):
    few_steps(monkeypatch)
    np.savez(tmp_path / "set.npz", images=data.pixels[:60], labels=data.labels[:60])
    unfitted.scan(tmp_path / "set.npz", classes=["cat", "dog", "newt"])
    assert unfitted.scan_.data.class_names == ("cat", "dog", "newt")


def test_labels_beside_a_source_that_has_its_own_are_refused(unfitted, data):
    with pytest.raises(ClipguardError, match="leave y and classes out"):
        unfitted.scan(source_of(data), data.labels)


@pytest.mark.parametrize("name", ["images", "~/images"])
def test_a_run_folder_inside_the_data_is_refused_and_nothing_is_written(tmp_path, monkeypatch, name, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = image_folder(tmp_path / "images")
    before = tree(folder)
    with pytest.raises(ClipguardError, match="lies inside the data"):
        Defender("mini", folder / "run", config=CONFIG).scan(name)
    ran = CommandLine(capsys)("scan", name, "-o", folder / "run", "--guide", "mini")
    assert (ran.code, "lies inside the data" in ran.err) == (2, True)
    assert tree(folder) == before


def test_an_unknown_guide_is_refused_by_its_name(data, tmp_path):
    with pytest.raises(ClipguardError, match="guide 'mini2' is unknown"):
        Defender("mini2", tmp_path / "run").scan(data.pixels, data.labels, classes=NAMES)


def test_python_and_the_command_line_write_the_same_files(tmp_path, capsys, monkeypatch):
    few_steps(monkeypatch)
    folder = image_folder(tmp_path / "images")
    CommandLine(capsys)("scan", folder, "-o", tmp_path / "a", "--guide", "mini", "--power", 0)
    Defender("mini", tmp_path / "b", config=DefenseConfig(power=0), progress=False).scan(folder)
    one, two = (
        {name for name in tree(tmp_path / run) if "/." not in f"/{name}" and "stages" not in name}
        for run in "ab"
    )
    assert one == two
    assert {"report.html", "summary.json", "samples.parquet"} <= one
    first, second = (comparable(tmp_path / run) for run in "ab")
    assert first == second


def comparable(run):
    """Return the summary without times and the folder's own name."""
    summary = json.loads(json.dumps(plain(read_summary(run))).replace(str(run), "RUN"))
    for stage in summary["stages"].values():
        del stage["seconds"]
    return summary


def test_a_fit_publishes_rates_model_and_page(fitted):
    run = fitted.scan_.context.run.path
    summary = read_summary(run)
    assert summary == fitted.summary_
    assert summary.command == "defend"
    assert 0 <= summary.after.accuracy <= 1
    assert [name for name in summary.files if not (run / summary.files[name]).exists()] == []
    assert {"report", "samples", "model"} <= set(summary.files)


def test_a_scan_in_the_folder_of_a_fit_says_that_the_model_is_an_earlier_one(fitted, data):
    again = clone(fitted).scan(data.pixels, data.labels, classes=NAMES)
    assert any("is of an earlier repair" in line for line in again.warnings_)
    assert "model" not in again.summary_.files


def test_the_data_frame_is_the_published_table(scanned):
    frame = scanned.to_pandas()
    table = read_table(scanned.scan_.context.run.path / "samples.parquet")
    assert list(frame.columns) == list(table)
    assert all(list(frame[name]) == list(values) for name, values in table.items())
    assert (frame.status == "flagged").sum() == scanned.partition_.flagged.sum() > 0


def test_without_pandas_the_error_says_what_to_do(scanned, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ClipguardError, match=r"pip install pandas, or read .*samples\.parquet"):
        scanned.to_pandas()


def tags_in(html):
    """Return the names of all elements of a fragment."""
    names = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            names.append(tag)
            assert attributes == []

    Reader().feed(html)
    return set(names)


def test_a_notebook_sees_the_verdict_and_no_markup_of_the_data(scanned):
    (finding,) = scanned.verdict_.findings
    shown = copy.copy(scanned)
    shown.verdict_ = replace(scanned.verdict_, findings=[replace(finding, class_name=HOSTILE)])
    html = shown._repr_mimebundle_()["text/html"]
    assert HOSTILE not in html
    assert "&lt;img src=x" in html
    assert tags_in(html) <= {"div", "p", "b", "code", "table", "thead", "tbody", "tr", "th", "td"}
    assert "Suspicious" in html
    assert f"{scanned.partition_.flagged.sum()} of {len(scanned.scan_.data)} samples are flagged" in html


def test_a_notebook_sees_an_unfitted_defender_as_the_call_that_made_it():
    made = Defender(guide="<b>", run_dir="x")
    assert tags_in(made._repr_html_()) == {"pre"}
    assert "&lt;b&gt;" in made._repr_html_()


def test_progress_is_on_stderr_by_default_and_goes_where_it_is_sent(data, tmp_path, capsys, monkeypatch):
    few_steps(monkeypatch)
    monkeypatch.setattr("clipguard.outputs.progress.WORTH_A_LINE", 0.0)
    given = data.pixels[:60], data.labels[:60]
    Defender("mini", tmp_path / "a", config=CONFIG).scan(*given, classes=NAMES)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "60 of 60 in" in captured.err
    steps = []
    heard = Defender("mini", tmp_path / "b", config=CONFIG, progress=lambda *step: steps.append(step))
    heard.scan(*given, classes=NAMES)
    Defender("mini", tmp_path / "c", config=CONFIG, progress=False).scan(*given, classes=NAMES)
    assert capsys.readouterr().err == ""
    assert any(done == total == 60 for _, done, total in steps)
    assert vars(heard)["progress"] is heard.get_params()["progress"]
