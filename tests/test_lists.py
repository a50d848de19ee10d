"""Lists that other programs open: nothing in them is a formula, a second line or a control of a terminal."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipguard.runs.lists import csv_cell, name_line, write_csv, write_names


def name_of(line):
    """Return the name that a line stands for, as the documentation says."""
    return json.loads(line) if line.startswith('"') else line


@pytest.mark.parametrize(
    "name", ["cat/0001.png", "a b/ü.png", "Screenshot 1\u202fPM.png", "x\\y.png", "=1.png"]
)
def test_an_ordinary_name_is_a_line_as_it_is(name):
    assert name_line(name) == name


@given(st.lists(st.text(), max_size=5))
def test_names_are_lines_from_which_each_comes_back(tmp_path_factory, names):
    file = tmp_path_factory.mktemp("lists") / "names.txt"
    write_names(file, names)
    lines = file.read_text(encoding="utf-8").split("\n")
    assert [name_of(line) for line in lines[:-1]] == names
    assert lines[-1] == ""


@given(st.text())
def test_a_line_holds_nothing_that_breaks_it_or_controls_a_terminal(name):
    line = name_line(name)
    assert len(line.splitlines()) == 1
    assert line == line.strip()
    assert not any(letter < " " or "\x7f" <= letter <= "\x9f" or letter in "\u202e\u2066" for letter in line)


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "  =1",
        "\x00=1",
        '=HYPERLINK("http://x")',
        "＝1",
        "\ufeff=1",
    ],
)
def test_no_cell_begins_as_a_formula_does(text):
    assert csv_cell(text)[0] in "'\\"


@given(st.lists(st.lists(st.text() | st.integers() | st.none(), min_size=2, max_size=2), max_size=5))
def test_a_table_of_any_texts_has_its_rows_and_columns(tmp_path_factory, rows):
    file = tmp_path_factory.mktemp("lists") / "table.csv"
    write_csv(file, ["a", "b"], rows)
    read = list(csv.reader(io.StringIO(file.read_text(encoding="utf-8"), newline="")))
    assert read[0] == ["a", "b"]
    assert [len(row) for row in read[1:]] == [2] * len(rows)
    assert len(file.read_text(encoding="utf-8").split("\n")) == len(rows) + 2


def test_numbers_stay_numbers(tmp_path):
    write_csv(tmp_path / "a.csv", ["x", "y"], [[-0.5, -1], [None, 3]])
    assert (tmp_path / "a.csv").read_text() == "x,y\n-0.5,-1\n,3\n"
