"""data.metadata: tables of image folders, read as other tools read them, and never out of their folder."""

import json

import pytest

from clipguard.data import Columns, ImageSource
from clipguard.data.metadata import inside_path, opened_table
from clipguard.safety.limits import Limits
from test_sources import png, refusal, write_folder


def folder(tmp_path, text, kind="csv"):
    """Write two images and a table."""
    write_folder(tmp_path, ["0.png", "1.png"])
    (tmp_path / f"metadata.{kind}").write_text(text, "utf-8")
    return tmp_path


def test_a_column_that_is_named_twice_is_refused(tmp_path):
    folder(tmp_path, "file_name,label,label\n0.png,cat,dog\n1.png,dog,cat\n")
    message = refusal(tmp_path)
    assert "metadata.csv cannot be read: its first line names the column 'label' twice: rename one" in message


def test_columns_without_names_and_blank_lines_are_no_fault(tmp_path):
    folder(tmp_path, "file_name,label,,\n\n0.png,cat,,\n1.png,dog,,\n\n")
    assert ImageSource.open(tmp_path).class_names == ("cat", "dog")


def test_a_field_of_several_lines_is_one_field(tmp_path):
    folder(tmp_path, 'file_name,note,label\r\n0.png,"a\r\nb\nc",cat\r\n1.png,x,dog')
    assert ImageSource.open(tmp_path).class_names == ("cat", "dog")


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\x0b", "\x1c"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_only_a_line_feed_ends_a_line(tmp_path, mark, kind):
    rows = [
        {"file_name": f"{row}.png", "note": f"a{mark}b", "label": ("cat", "dog")[row]} for row in range(2)
    ]
    if kind == "csv":
        lines = ["file_name,note,label", *(",".join(row.values()) for row in rows)]
    else:
        # Marks below the space must be escaped in JSON; the others may stand as they are.
        lines = [json.dumps(row, ensure_ascii=mark < " ") for row in rows]
    source = ImageSource.open(folder(tmp_path, "\n".join(lines) + "\n", kind))
    assert source.ids == ("0.png", "1.png")
    assert source.class_names == ("cat", "dog")


def test_a_line_that_is_no_object_is_named_by_its_number(tmp_path):
    folder(tmp_path, '{"file_name": "0.png", "label": 0}\n\n[1]\n', "jsonl")
    assert "line 3 is no JSON object" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("path", "plain"),
    [
        ("a/x.png", "a/x.png"),
        ("./a/x.png", "a/x.png"),
        ("././a//b/./x.png", "a/b/x.png"),
        ("a\\x.png", "a/x.png"),
        ("a/..x.png", "a/..x.png"),
        (".//home/u/x.png", None),
        ("././/home/u/x.png", None),
        (".\\\\home\\u\\x.png", None),
        ("./~/x.png", None),
        ("./C:/x.png", None),
        ("C:\\x.png", None),
        ("./../x.png", None),
        ("a/./../../x.png", None),
        ("a\0.png", None),
        ("a\ud800.png", None),
        ("./", None),
        ("", None),
        (None, None),
        (7, None),
    ],
)
def test_a_path_is_checked_in_its_plain_form(path, plain):
    assert inside_path(path, Limits()) == plain


def test_a_path_that_hides_its_root_is_refused_even_where_links_may_lead_out(tmp_path):
    write_folder(tmp_path, ["out/x.png"])
    text = f"file_name,label\n0.png,cat\n1.png,dog\n./{tmp_path}/out/x.png,cat\n"
    source = ImageSource.open(folder(tmp_path / "set", text), limits=Limits(links=True))
    assert source.ids == ("0.png", "1.png")
    assert [entry.reason.startswith("a path that leads out") for entry in source.refused] == [True]


def test_one_image_under_two_spellings_is_one_image(tmp_path):
    folder(tmp_path, "file_name,label\n0.png,cat\n./0.png,dog\n")
    assert "names '0.png' twice" in refusal(tmp_path)


def test_a_table_may_be_many_times_as_large_as_a_text_of_json(tmp_path):
    text = "file_name,label,note\n" + "".join(f"{row}.png,{'cd'[row]},{'x' * 900}\n" for row in range(2))
    folder(tmp_path, text)
    assert len(ImageSource.open(tmp_path, limits=Limits(json_bytes=100))) == 2
    message = refusal(tmp_path, limits=Limits(json_bytes=50))
    assert f"{len(text)} bytes, more than the limit of 1600" in message
    assert "--limits.json-bytes" in message


@pytest.mark.slow
def test_a_table_of_a_million_images_is_within_the_limits(tmp_path):
    file = tmp_path / "metadata.csv"
    with file.open("w") as table:
        table.write("file_name,label\n")
        table.writelines(f"class/of/some/depth/{row:09d}.png,{row % 10}\n" for row in range(1_000_000))
    there, records = opened_table(file, Limits())
    assert there == ["file_name", "label"]
    assert sum(record.fields is not None for record in records) == 1_000_000


def test_more_rows_than_the_limit_are_refused(tmp_path):
    folder(tmp_path, "file_name,label\n0.png,cat\n1.png,dog\n2.png,dog\n")
    assert "more rows than the limit of 2" in refusal(tmp_path, limits=Limits(members=2))


def test_a_column_that_is_named_holds_the_paths(tmp_path):
    folder(tmp_path, "file_name,copy,label\ngone.png,0.png,cat\nlost.png,1.png,dog\n")
    source = ImageSource.open(tmp_path, columns=Columns(image="copy"))
    assert list(source.read(range(2))) == [png(0), png(1)]
