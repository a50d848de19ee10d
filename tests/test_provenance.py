"""data.provenance and `clipguard verify`: what was read is on record, and every later change is reported."""

import hashlib
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from clipguard.clip.zero_shot import EMBEDDED_SHA256, ClipGuide
from clipguard.data import ImageSource
from clipguard.data.decode import Decoder, read_rows
from clipguard.data.provenance import check_inputs, record_rows, recorded_rows, recorded_source, rows_file
from clipguard.data.writer import write_parquet
from clipguard.detection.trigger_detector import TriggerDetectorConfig
from clipguard.errors import ClipguardError
from clipguard.models.spec import ModelSpec, build, save
from clipguard.pipeline.defender import Defender
from clipguard.pipeline.summary import write_summary
from clipguard.runs import read_json, read_table, write_json
from clipguard.safety.limits import Limits
from clipguard.seeds import Seed
from clipguard.types import image_set
from tar_files import samples, write_tar
from tiny_data import NAMES, image_folder, npz, pictures, tree
from tiny_reading import VIEW, counting, read_into
from tiny_runs import CONFIG

N = 20
NET = replace(CONFIG.early_model, epochs=1)
# Thresholds that flag nothing, for tests that are not about what is found.
DETECTOR = TriggerDetectorConfig(net=NET, flagged=1.0, clean=1.0)
QUICKEST = replace(CONFIG, early_model=NET, trigger_detector=DETECTOR)
ARTEFACTS = (
    "samples.parquet",
    "model.safetensors",
    "manifest.json",
    "stages/unlearning/manifest.json",
    "stages/images/images_000000.npy",
    "stages/embeddings/img_emb/img_emb_000000.npy",
    "stages/embeddings/rows/rows_000000.parquet",
)


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


def statuses(folder, data):
    """Return the set of what became of the images, whose names must not repeat."""
    checks = list(check_inputs(folder, data))
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
    assert list(table) == ["id", "label", "bytes", "sha256", "height", "width", "reason"]
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


@pytest.mark.parametrize("kind", ["folder", "parquet", "tar"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, kind):
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
    odd = [check for check in check_inputs(out, data) if check.status != "ok"]
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
        list(check_inputs(out, tmp_path))


def test_inputs_are_listed_as_ok_changed_missing_or_added(tmp_path, data):
    out = read(tmp_path, ImageSource.open(data))
    moved = data.rename(tmp_path / "moved")
    assert statuses(out, moved) == {"ok"}
    (moved / "cat/0000.png").write_bytes(b"other")
    (moved / "dog/0001.png").rename(moved / "dog/new.png")
    odd = {c.path: c.status for c in check_inputs(out, moved) if c.status != "ok"}
    assert odd == {"cat/0000.png": "changed", "dog/0001.png": "missing", "dog/new.png": "added"}


def test_inputs_are_looked_for_by_the_limits_of_the_run(tmp_path, data):
    (data / "cat").rename(tmp_path / "cats")
    (data / "cat").symlink_to(tmp_path / "cats")
    out = read(tmp_path, ImageSource.open(data, limits=Limits(links=True)))
    assert statuses(out, data) == {"ok"}
    about = read_json(out / "inputs.json")
    for limits, reason in (
        ({"links": False}, "a link that leads out"),
        ({"links": True, "members": 3}, "more files than the limit of 3"),
        ({"unknown": 1}, "inputs.json is damaged"),
        ({"members": "many"}, "inputs.json is damaged"),
        (None, "inputs.json is damaged"),
    ):
        write_json(out / "inputs.json", about | {"limits": limits})
        with pytest.raises(ClipguardError, match=reason):
            list(check_inputs(out, data))


def test_of_some_rows_only_the_others_are_no_addition(tmp_path, data):
    out = read(tmp_path, ImageSource.open(data, rows=(5, 15)))
    assert len(listed(out)) == 10
    assert statuses(out, data) == {"ok"}


# ---- the command


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the data, the model and the run of a defence."""
    root = tmp_path_factory.mktemp("provenance")
    image_folder(root / "data", n=60)
    spec = ModelSpec.sized(architecture="preactresnet18-4", num_classes=2, input_size=(16, 16))
    save(build(spec, Seed(0)), spec, root / "model.safetensors")
    defender = Defender(ClipGuide("mini"), root / "run", config=QUICKEST)
    defender.fit(root / "data", model=root / "model.safetensors")
    write_summary(defender, "defend", files={})
    return root


@pytest.fixture
def root(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def test_the_manifest_pins_guide_and_model(root):
    manifest = read_json(root / "run/manifest.json")
    mini = ClipGuide("mini")
    guide = {"name": "mini", "sha256": EMBEDDED_SHA256, "weights_verified_by": "embedded"}
    guide |= {"preprocessing_sha256": mini.clip.preprocessing_sha256}
    assert manifest["guide"] == guide
    assert manifest["model"]["sha256"] == sha256(root / "model.safetensors")
    assert manifest["source"]["key"] == ImageSource.open(root / "data").key


def test_an_untouched_run_is_proved_without_a_byte_being_written(clipguard, root):
    before = tree(root)
    ran = clipguard(
        "verify", root / "run", "--data", root / "data", "--model", root / "model.safetensors", "--json"
    )
    assert ran.code == 0
    assert ran.json["ok"] is True
    assert ran.json["seal"] == sha256(root / "run/seal.json")
    assert {file["status"] for file in ran.json["files"]} == {"ok"}
    paths = {file["path"] for file in ran.json["files"] if file["part"] == "artefacts"}
    written = {name for name in tree(root / "run") if (root / "run" / name).is_file()}
    assert written - paths == {".lock", "seal.json"}
    assert ran.json["counts"]["inputs"] == {"ok": 60}
    assert tree(root) == before


@pytest.mark.parametrize(
    "name",
    ARTEFACTS,
)
@pytest.mark.parametrize("status", ["changed", "missing"])
def test_every_artefact_that_differs_is_named(clipguard, root, name, status):
    if (name, status) == ("manifest.json", "missing"):
        pytest.skip("then it is no run folder")
    file = root / "run" / name
    if status == "changed":  # of the same size
        content = file.read_bytes()
        at = content.rindex(b"0") if name.endswith("json") else len(content) // 2
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    else:
        file.unlink()
    ran = clipguard("verify", root / "run", "--json")
    assert ran.code == 1
    odd = {file["path"]: file["status"] for file in ran.json["files"] if file["status"] != "ok"}
    assert odd[name] == status


def test_a_changed_model_and_an_added_file_are_printed_too(clipguard, root):
    (root / "model.safetensors").write_bytes(b"another")
    (root / "run/stages/images/more.npy").write_bytes(b"more")
    ran = clipguard("verify", root / "run", "--model", root / "model.safetensors")
    assert ran.code == 1
    lines = ran.out.splitlines()
    assert f"changed  {root / 'model.safetensors'}" in lines
    assert "added    stages/images/more.npy" in lines
    assert "inputs: not compared (give --data)" in lines
    assert lines[-1] == f"seal: {sha256(root / 'run/seal.json')}"


@pytest.mark.parametrize(
    ("damage", "says"), [("seal", "seal.json"), ("manifest", "no run folder"), ("data", "does not exist")]
)
def test_what_cannot_be_verified_is_an_error_in_one_line(clipguard, root, damage, says):
    if damage == "seal":
        (root / "run/seal.json").write_text("{")
    elif damage == "manifest":
        (root / "run/manifest.json").unlink()
    data = root / ("gone" if damage == "data" else "data")
    ran = clipguard("verify", root / "run", "--data", data)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert says in ran.err


@pytest.mark.parametrize(
    "name", ["report2.html", "stages/more.npy", "stages/images/more.npy", "stages/new/manifest.json"]
)
def test_an_added_file_is_listed_wherever_it_lies(clipguard, root, name):
    (root / "run" / name).parent.mkdir(exist_ok=True)
    (root / "run" / name).write_text("{}")
    ran = clipguard("verify", root / "run", "--json")
    odd = {file["path"]: file["status"] for file in ran.json["files"] if file["status"] != "ok"}
    assert (ran.code, odd) == (1, {name: "added"})


@pytest.mark.parametrize(
    "name",
    ["samples.parquet", "stages/unlearning/manifest.json", "stages/embeddings/rows/rows_000000.parquet"],
)
def test_a_pipe_in_place_of_a_file_is_listed_and_not_waited_for(clipguard, root, name):
    (root / "run" / name).unlink()
    os.mkfifo(root / "run" / name)
    ran = clipguard("verify", root / "run", "--json")
    assert ran.code == 1
    assert {"part": "artefacts", "path": name, "status": "changed"} in ran.json["files"]


@pytest.mark.parametrize("name", ["rows/rows_000000.parquet", "inputs.json"])
@pytest.mark.parametrize("content", [b"[" * 100_000, b"PAR1", "pipe"])
def test_a_list_of_inputs_that_is_no_list_is_an_error_in_one_line(clipguard, root, name, content):
    file = root / "run/stages/embeddings" / name
    file.unlink()
    if content == "pipe":
        os.mkfifo(file)
    else:
        file.write_bytes(content)
    ran = clipguard("verify", root / "run", "--data", root / "data")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert "internal error" not in ran.err


@pytest.mark.parametrize("entry", [5, {}, {"bytes": "4"}, {"bytes": 0, "sha256": "x"}])
def test_a_stage_that_records_damaged_entries_or_a_device_is_listed(clipguard, root, entry):
    manifest = root / "run/stages/unlearning/manifest.json"
    files = {"../../report.html": entry, "../../../../../../../dev/zero": entry, "a\0b": entry}
    write_json(manifest, read_json(manifest) | {"files": files})
    ran = clipguard("verify", root / "run", "--json")
    assert ran.code == 1
    odd = {f["path"]: f["status"] for f in ran.json["files"] if f["status"] != "ok"}
    assert odd["stages/unlearning/manifest.json"] == "changed"
    # The entries themselves prove nothing, wherever they point.
    assert all(odd[f"stages/unlearning/{name}"] != "ok" for name in files)


def test_a_changed_or_exchanged_guide_is_listed(clipguard, root):
    weights = ClipGuide("mini").clip.weights
    for given in (weights, weights.parent):
        assert clipguard("verify", root / "run", "--guide", given).code == 0
    shutil.copytree(weights.parent, root / "guide")
    config = root / "guide" / "open_clip_config.json"
    settings = config.read_text()
    changed = json.loads(settings)
    changed["preprocess_cfg"]["mean"] = [0.1, 0.2, 0.3]
    config.write_text(json.dumps(changed))
    ran = clipguard("verify", root / "run", "--guide", root / "guide", "--json")
    assert (ran.code, ran.json["counts"]["guide"]) == (1, {"ok": 1, "changed": 1})
    config.write_text(settings)
    content = bytearray((root / "guide" / weights.name).read_bytes())
    content[-1] ^= 1
    (root / "guide" / weights.name).write_bytes(content)
    ran = clipguard("verify", root / "run", "--guide", root / "guide", "--json")
    assert (ran.code, ran.json["counts"]["guide"]) == (1, {"changed": 1})
    assert clipguard("verify", root / "run", "--guide", root / "none", "--json").json["counts"]["guide"] == {
        "missing": 1
    }


def test_writing_the_report_again_does_not_cover_up_a_changed_manifest(clipguard, root):
    manifest = read_json(root / "run/manifest.json")
    write_json(root / "run/manifest.json", manifest | {"model": None})
    assert clipguard("report", root / "run").code == 0
    ran = clipguard("verify", root / "run", "--json")
    odd = {file["path"]: file["status"] for file in ran.json["files"] if file["status"] != "ok"}
    assert (ran.code, odd) == (1, {"manifest.json": "changed"})


def test_a_run_that_was_given_no_model_has_none_to_compare(clipguard, root):
    manifest = read_json(root / "run/manifest.json")
    write_json(root / "run/manifest.json", manifest | {"model": None})
    ran = clipguard("verify", root / "run", "--model", root / "model.safetensors")
    assert ran.code == 2
    assert "no model file" in ran.err


def test_the_embedded_guide_is_the_released_one_and_a_foreign_folder_is_not_known(tmp_path):
    mini = ClipGuide("mini")
    assert (mini.weights_verified_by, mini.clip.fingerprint) == ("embedded", EMBEDDED_SHA256)
    shutil.copytree(mini.clip.weights.parent, tmp_path / "guide")
    assert ClipGuide(f"local-dir:{tmp_path / 'guide'}").weights_verified_by is None


def test_weights_that_are_not_what_their_cache_calls_them_are_refused(tmp_path, monkeypatch):
    guide, mini = ClipGuide("hf-hub:some/guide"), ClipGuide("mini").clip
    for name in (EMBEDDED_SHA256, "0" * 64):
        shutil.copyfile(mini.weights, tmp_path / name)
    monkeypatch.setitem(vars(guide), "clip", replace(mini, weights=tmp_path / EMBEDDED_SHA256))
    assert guide.weights_verified_by == "hub"
    monkeypatch.setitem(vars(guide), "clip", replace(mini, weights=tmp_path / ("0" * 64)))
    with pytest.raises(ClipguardError, match="is not what was released"):
        _ = guide.weights_verified_by


def test_a_scan_with_a_guide_of_unverified_weights_warns(finished, tmp_path, monkeypatch):
    shutil.copytree(finished / "run", tmp_path / "run")
    monkeypatch.setattr(ClipGuide, "weights_verified_by", None)
    defender = Defender(ClipGuide("mini"), tmp_path / "run", config=QUICKEST).scan(finished / "data")
    assert [EMBEDDED_SHA256 in line for line in defender.warnings_].count(True) == 1
