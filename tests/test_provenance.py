"""data.provenance: what was read is on record, and what became of it since."""

import hashlib
import os
from dataclasses import replace

import numpy as np
import pytest

from clipguard.data import ImageSource
from clipguard.data.decode import Decoder, read_rows
from clipguard.data.finding import listing_of
from clipguard.data.labels import Labels, same_classes
from clipguard.data.provenance import check_inputs, record_rows, recorded_rows, recorded_source, rows_file
from clipguard.data.writer import write_parquet
from clipguard.errors import ClipguardError
from clipguard.runs import read_json, read_table, write_json, write_table
from clipguard.safety.limits import Limits
from clipguard.types import image_set
from tar_files import samples, write_tar
from tiny_data import NAMES, image_folder, npz, pictures
from tiny_reading import VIEW, counting, read_into

N = 20


def sha256(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def listed(folder):
    """Return id -> (bytes, sha256) of what was read, and see that the columns are as long as each other."""
    tables = [read_table(file) for file in sorted((folder / "rows").glob("*.parquet"))]
    rows = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    sums = (one.hex() for one in rows["sha256"])
    return dict(zip(rows["id"], zip(rows["bytes"].tolist(), sums, strict=True), strict=True))


@pytest.fixture
def data(tmp_path):
    return image_folder(tmp_path / "data", n=N)


def read(tmp_path, source):
    """Return the folder of a finished reading stage."""
    return read_into(tmp_path / "read", source)


def statuses(folder, data, limits=None):
    """Return the set of what became of the images, whose names must not repeat."""
    checks = list(check_inputs(folder, data, limits).files)
    assert len({check.path for check in checks}) == len(checks)
    return {check.status for check in checks}


def test_each_image_of_a_folder_is_listed_with_size_and_hash(tmp_path, data):
    out = read(tmp_path, ImageSource.open(data))
    files = sorted(data.rglob("*.png"))
    assert listed(out) == {
        file.relative_to(data).as_posix(): (file.stat().st_size, sha256(file)) for file in files
    }


def test_what_is_recorded_is_said_of_the_bytes_that_were_decoded_and_nothing_is_fetched_once_more(
    tmp_path, data
):
    source = counting(ImageSource.open(data))
    out = read(tmp_path, source)
    assert source.reader.rows == list(range(N))
    assert recorded_source(out)["fingerprint"] == ImageSource.open(data).fingerprint
    table = read_table(rows_file(out, 0))
    of_the_image = ["height", "width", "grey_bits", "transparent", "reason"]
    assert list(table) == ["id", "label", "bytes", "sha256", *of_the_image]
    assert table["label"].tolist() == source.labels.tolist()
    assert set(zip(table["height"], table["width"], table["reason"], strict=True)) == {(16, 16, "")}


def test_an_image_that_cannot_be_read_is_recorded_with_its_reason(tmp_path, data):
    gone, torn = data / "cat/0000.png", data / "dog/0001.png"
    torn.write_bytes(b"torn")
    source = ImageSource.open(data)
    gone.unlink()
    reads = list(read_rows(source, range(N), (VIEW,), Decoder(source.limits)))
    record_rows(tmp_path / "rows.parquet", source, reads)
    rows = recorded_rows(tmp_path / "rows.parquet")
    assert [entry.id for entry in rows.unreadable] == ["cat/0000.png", "dog/0001.png"]
    assert rows.unreadable[0].reason == "No such file or directory"
    assert rows.sha256[source.ids.index("dog/0001.png")].hex() == sha256(torn)
    assert rows.sha256[source.ids.index("cat/0000.png")] == bytes(32)
    assert len(rows.readable) == N - 2


# ---- the key


def parquet(path):
    labels = np.arange(N) % 2
    write_parquet(image_set(pictures(N), labels, NAMES), path)
    return path


def made(tmp_path, kind):
    """Return a source of a kind, and one of its files."""
    if kind == "folder":
        data = image_folder(tmp_path / "data", n=N)
        return data, data / "cat/0000.png"
    file = tmp_path / f"a.{kind}"
    if kind == "parquet":
        parquet(file)
    elif kind == "tar":
        write_tar(file, samples(N))
    else:
        npz(file, np.arange(N) % 2)
    return file, file


def key_of(data):
    return ImageSource.open(data, classes=NAMES).key


@pytest.mark.parametrize("kind", ["folder", "parquet", "tar"])
def test_the_key_of_files_comes_from_their_sizes_and_dates_and_no_image_is_read(tmp_path, kind):
    data, file = made(tmp_path, kind)
    source = counting(ImageSource.open(data, classes=NAMES))
    key = source.key
    assert source.reader.rows == []
    assert key == key_of(data)
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert len({key, key_of(data), source.key_now()}) == 2
    assert source.key == key
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert source.key_now() == key
    content = file.read_bytes()
    with file.open("ab") as opened:
        opened.write(b"\0")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert source.key_now() != key
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert source.key_now() == key


def test_the_key_of_what_is_no_file_is_its_contents(tmp_path):
    images, labels = pictures(N), np.arange(N) % 2
    source = ImageSource.open((images, labels), classes=NAMES)
    assert source.key == source.fingerprint == ImageSource.open((images.copy(), labels), classes=NAMES).key
    changed = images.copy()
    changed[3, 0, 0, 0] ^= 1
    assert ImageSource.open((changed, labels), classes=NAMES).key != source.key


def test_labels_names_and_rows_are_part_of_the_key(data):
    whole = ImageSource.open(data)
    others = [
        ImageSource.open(data, classes=("cat", "wolf")),
        ImageSource.open(data, rows=(0, N - 1)),
        replace(whole, labels=1 - whole.labels),
    ]
    assert len({source.key for source in (whole, *others)}) == 4
    assert len({source.fingerprint for source in (whole, *others)}) == 4


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_file_that_holds_labels_and_changes_while_it_is_read_is_refused(tmp_path, kind):
    data, file = made(tmp_path, kind)
    source = ImageSource.open(data, classes=NAMES)
    assert source.key

    def touched(done, total):
        os.utime(file, ns=(0, 0))

    with pytest.raises(ClipguardError, match="changed while it was being read: run again when it rests"):
        read_into(tmp_path / "read", source, progress=touched)


# ---- the comparison


@pytest.mark.parametrize("kind", ["folder", "parquet", "tar", "npz"])
def test_an_image_that_changed_is_named_also_where_size_and_date_are_the_same(tmp_path, kind):
    data, file = made(tmp_path, kind)
    out = read(tmp_path, ImageSource.open(data, classes=NAMES))
    assert len(listed(out)) == N
    assert statuses(out, data) == {"ok"}
    if kind in ("parquet", "npz"):  # compressed: whoever changes an image writes the file anew
        images = pictures(N)
        images[0, 0, 0] ^= 255
        if kind == "npz":
            np.savez(file, images=images, labels=np.arange(N) % 2, class_names=np.array(NAMES))
        else:
            write_parquet(image_set(images, np.arange(N) % 2, NAMES), file)
    else:
        status, content = file.stat(), bytearray(file.read_bytes())
        at = content.index(b"IDAT") + 12
        content[at] ^= 1
        file.write_bytes(content)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert key_of(data) == read_key(out, data)
    odd = [check for check in check_inputs(out, data).files if check.status != "ok"]
    assert [check.status for check in odd] == ["changed"]
    assert odd[0].path in listed(out)


def read_key(out, data):
    """Return the key of the source that was read, whose fingerprint is on record."""
    source = ImageSource.open(data, classes=NAMES)
    assert recorded_source(out)["fingerprint"] != source.fingerprint
    return source.key


def test_what_has_no_file_leaves_nothing_to_compare(tmp_path):
    out = read(tmp_path, ImageSource.open((pictures(N), np.arange(N) % 2), classes=NAMES))
    assert len(listed(out)) == N
    with pytest.raises(ClipguardError, match="read from no file"):
        list(check_inputs(out, tmp_path).files)


def test_inputs_are_listed_as_ok_changed_missing_or_added(tmp_path, data):
    out = read(tmp_path, ImageSource.open(data))
    moved = data.rename(tmp_path / "moved")
    assert statuses(out, moved) == {"ok"}
    (moved / "cat/0000.png").write_bytes(b"other")
    (moved / "dog/0001.png").rename(moved / "dog/new.png")
    odd = {c.path: c.status for c in check_inputs(out, moved).files if c.status != "ok"}
    assert odd == {"cat/0000.png": "changed", "dog/0001.png": "missing", "dog/new.png": "added"}


def test_inputs_are_looked_for_by_the_limits_of_the_run(tmp_path, data):
    (data / "cat").rename(tmp_path / "cats")
    (data / "cat").symlink_to(tmp_path / "cats")
    loose = Limits(links=True)
    out = read(tmp_path, ImageSource.open(data, limits=loose))
    assert statuses(out, data, loose) == {"ok"}
    about = read_json(out / "inputs.json")
    for limits, reason in (
        ({"links": False}, "a link that leads out"),
        ({"links": True, "members": 3}, "more files than the limit of 3"),
        ({"unknown": 1}, "inputs.json is damaged"),
        ({"members": "many"}, "inputs.json is damaged"),
        ({"links": "yes"}, "inputs.json is damaged"),
        (None, "inputs.json is damaged"),
    ):
        write_json(out / "inputs.json", about | {"limits": limits})
        with pytest.raises(ClipguardError, match=reason):
            list(check_inputs(out, data, loose).files)


def test_a_run_that_loosens_limits_is_refused_until_they_are_given_again(tmp_path, data):
    out = read(tmp_path, ImageSource.open(data))
    about = read_json(out / "inputs.json")
    looser = {"links": True, "file_bytes": 2**28, "members": 2**62}
    write_json(out / "inputs.json", about | {"limits": about["limits"] | looser})
    with pytest.raises(
        ClipguardError, match=r"looser limits than these \(file_bytes .*, links True, members"
    ):
        check_inputs(out, data)
    assert statuses(out, data, Limits(**looser)) == {"ok"}


def test_a_run_that_was_read_without_a_sandbox_is_compared_in_one(tmp_path, data, monkeypatch):
    out = read(tmp_path, ImageSource.open(data))
    about, used = read_json(out / "inputs.json"), []
    recorded = {"isolated": False, "memory": 2**62, "seconds": 1e6, "pixels": 2**40, "members": 100}
    write_json(out / "inputs.json", about | {"limits": about["limits"] | recorded})

    def listed_by(what, limits, columns):
        used.append(limits)
        return listing_of(what, limits, columns)

    monkeypatch.setattr("clipguard.data.provenance.listing_of", listed_by)
    assert statuses(out, data) == {"ok"}
    assert used == [Limits(members=100)]


def test_of_some_rows_only_the_others_are_no_addition(tmp_path, data):
    out = read(tmp_path, ImageSource.open(data, rows=(5, 15)))
    assert len(listed(out)) == 10
    assert statuses(out, data) == {"ok"}


# ---- labels


def changed(out, data, keys=None):
    return {check.path for check in check_inputs(out, data, None, keys).files if check.status == "changed"}


@pytest.mark.parametrize("kind", ["parquet", "tar", "npz"])
def test_a_label_that_changed_is_a_change_of_its_image(tmp_path, kind):
    data, file = made(tmp_path, kind)
    source = ImageSource.open(data, classes=NAMES)
    out = read(tmp_path, source)
    labels = np.arange(N) % 2
    labels[3] = 0
    if kind == "parquet":
        write_parquet(image_set(pictures(N), labels, NAMES), file)
    elif kind == "tar":
        write_tar(file, samples(N) | {"0003.cls": b"0"})
    else:
        npz(file, labels)
    assert changed(out, data, source.class_keys) == {source.ids[3]}


@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_a_class_that_was_added_changes_no_label_of_the_others(tmp_path, kind):
    labels = ["cat" if row % 2 else "dog" for row in range(N)]
    if kind == "csv":
        data = image_folder(tmp_path / "data", n=N)
        names = sorted(path.relative_to(data).as_posix() for path in data.rglob("*.png"))

        def write(labels):
            rows = [f"{name},{label}" for name, label in zip(names, labels, strict=True)]
            (data / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    else:
        data = tmp_path / "a.npz"

        def write(labels):
            np.savez(data, images=pictures(N), labels=np.array(labels))

    write(labels)
    source = ImageSource.open(data)
    assert source.class_keys == ("cat", "dog")
    out = read(tmp_path, source)
    write(["ant", *labels[1:]])
    assert changed(out, data, source.class_keys) == {source.ids[0]}
    assert len(changed(out, data)) > 1  # by their numbers


def test_labels_are_compared_by_what_the_source_itself_calls_its_classes(tmp_path, data):
    source = ImageSource.open(data, classes={"cat": "dog", "dog": "cat"})
    out = read(tmp_path, source)
    assert changed(out, data, source.class_keys) == set()


def test_a_number_that_no_name_belongs_to_is_no_class(tmp_path):
    first = Labels(np.array([0, 1, 2, 3, -1]), ("cat", "dog", "cat"))
    second = Labels(np.array([1, 0, 1, 3, -1]), ("dog", "cat"))
    assert same_classes(first, second).tolist() == [True, True, True, False, False]


def test_what_is_recorded_of_labels_may_be_damaged(tmp_path, data):
    out = read(tmp_path, ImageSource.open(data))
    table = read_table(rows_file(out, 0))
    write_table(rows_file(out, 0), table | {"label": ["cat"] * N})
    with pytest.raises(ClipguardError, match="is damaged"):
        check_inputs(out, data)
