"""`clipguard verify`: all files of a run, and what it was made of, are compared with what is on record."""

import hashlib
import json
import os
import shutil
from dataclasses import replace

import pytest

from clipguard.clip.zero_shot import EMBEDDED_SHA256, ClipGuide
from clipguard.data import ImageSource
from clipguard.detection.trigger_detector import TriggerDetectorConfig
from clipguard.errors import ClipguardError
from clipguard.models.spec import ModelSpec, build, save
from clipguard.pipeline.defender import Defender
from clipguard.pipeline.summary import write_summary
from clipguard.runs import read_json, write_json
from clipguard.seeds import Seed
from tiny_data import image_folder, tree
from tiny_runs import CONFIG

NET = replace(CONFIG.early_model, epochs=1)
# Thresholds that flag nothing, for tests that are not about what is found.
DETECTOR = TriggerDetectorConfig(net=NET, flagged=1.0, clean=1.0)
QUICKEST = replace(CONFIG, early_model=NET, trigger_detector=DETECTOR)
ARTEFACTS = (
    "samples.parquet",
    "model.safetensors",
    "manifest.json",
    "stages/trigger_detector/manifest.json",
    "stages/images/images_000000.npy",
    "stages/embeddings/img_emb/img_emb_000000.npy",
    "stages/embeddings/rows/rows_000000.parquet",
)


def sha256(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


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
    [
        "samples.parquet",
        "stages/trigger_detector/manifest.json",
        "stages/embeddings/rows/rows_000000.parquet",
    ],
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
    manifest = root / "run/stages/trigger_detector/manifest.json"
    files = {"../../report.html": entry, "../../../../../../../dev/zero": entry, "a\0b": entry}
    write_json(manifest, read_json(manifest) | {"files": files})
    ran = clipguard("verify", root / "run", "--json")
    assert ran.code == 1
    odd = {f["path"]: f["status"] for f in ran.json["files"] if f["status"] != "ok"}
    assert odd["stages/trigger_detector/manifest.json"] == "changed"
    # The entries themselves prove nothing, wherever they point.
    assert all(odd[f"stages/trigger_detector/{name}"] != "ok" for name in files)


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
