"""`clipguard apply` and `verify`: labels are compared, too, and a run loosens no limit."""

import numpy as np

from clipguard.data import ImageSource
from clipguard.data.writer import write_parquet
from clipguard.runs import read_json, write_json
from clipguard.safety.limits import Limits
from clipguard.types import image_set
from test_apply import N, run_of
from tiny_data import image_folder, pictures
from tiny_reading import read_into

NAMES = ("cat", "dog")
LABELS = np.arange(N) % 2


def written(path, labels, names=NAMES):
    write_parquet(image_set(pictures(N), np.array(labels), names), path)
    return path


def run_with_keys(tmp_path, source):
    """Return a run of the source that knows what the source itself calls its classes."""
    run = run_of(tmp_path / "run", source)
    manifest = read_json(run / "manifest.json")
    manifest["source"]["class_keys"] = list(ImageSource.open(source).class_keys)
    write_json(run / "manifest.json", manifest)
    return run


def test_a_label_that_changed_since_the_scan_is_refused_and_nothing_is_written(clipguard, tmp_path):
    source = written(tmp_path / "a.parquet", LABELS)
    run = run_with_keys(tmp_path, source)
    written(source, [1, *LABELS[1:]])
    ran = clipguard("apply", run, source, "-o", tmp_path / "clean")
    assert (ran.code, ran.out) == (2, "")
    assert "1 labels of" in ran.err
    assert f"such as that of {ImageSource.open(source).ids[0]!r}" in ran.err
    assert not (tmp_path / "clean").exists()


def test_a_class_that_was_added_in_front_moves_no_label(clipguard, tmp_path):
    source = written(tmp_path / "a.parquet", LABELS)
    run = run_with_keys(tmp_path, source)
    written(source, LABELS + 1, ("ant", *NAMES))
    ran = clipguard("apply", run, source, "-o", tmp_path / "clean", "--json")
    assert (ran.code, ran.json["kept"]) == (0, 9)


def test_a_run_that_follows_links_out_of_the_data_copies_no_file_from_elsewhere(clipguard, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"mine")
    source = image_folder(tmp_path / "data", N)
    (source / "cat/0000.png").unlink()
    (source / "cat/0000.png").symlink_to(tmp_path / "secret.png")
    run = run_of(tmp_path / "run", source)
    other = image_folder(tmp_path / "other", N)
    read_into(run / "stages", ImageSource.open(other, limits=Limits(links=True)))
    arguments = ("apply", run, source, "-o", tmp_path / "clean")
    ran = clipguard(*arguments)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert "looser limits than these (links True)" in ran.err
    assert not (tmp_path / "clean").exists()
    # With the limit repeated, it is what the user wants: only the hash, here of another reading, differs.
    assert "is not what was scanned" in clipguard(*arguments, "--limits.links").err


def test_verify_says_which_labels_changed_and_takes_limits(clipguard, tmp_path):
    source = written(tmp_path / "a.parquet", LABELS)
    run = run_with_keys(tmp_path, source)
    read_into(run / "stages", ImageSource.open(source))
    verify = ("verify", run, "--data", source, "--json")
    assert clipguard(*verify).json["counts"]["inputs"] == {"ok": N}
    written(source, [1, *LABELS[1:]])
    ran = clipguard(*verify)
    assert (ran.code, ran.json["counts"]["inputs"]) == (1, {"changed": 1, "ok": N - 1})
    ran = clipguard(*verify, "--limits.members", 3)
    assert ran.code == 2
    assert "looser limits than these (members 20000000)" in ran.err
