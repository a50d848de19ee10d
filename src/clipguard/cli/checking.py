"""`verify`: every file of a run, and of the data it was made of, against the hashes that were recorded."""

from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from clipguard.cli.options import VerifyOptions
from clipguard.cli.outcome import Outcome
from clipguard.clip.loading import CONFIG, FOLDER_PREFIX, WEIGHTS
from clipguard.data.listing import skipped_words
from clipguard.data.provenance import check_inputs, class_keys_of
from clipguard.errors import ClipguardError, one_line
from clipguard.runs import SEAL, Checked, RunFolder, compared, described, verify_run
from clipguard.runs.cleaning import cleaning_of
from clipguard.runs.samples_table import SAMPLES

if TYPE_CHECKING:
    from rich.console import Console

DIFFERS: Final = 1


def run_verify(run: Path, options: VerifyOptions) -> Outcome:
    """Return the status of each file; the exit code is 1 where one differs.

    Data, model and guide are compared where they are given.

    Raises:
        ClipguardError: no run folder, or one that lacks what is to be compared.
    """
    data = options.data
    checks, skipped = {"artefacts": verify_run(run)}, dict[str, int]()
    cleaning = cleaning_of(run)
    if data is not None:
        if cleaning is not None:
            raise ClipguardError(
                f"{cleaning.words(run)}, and with them the hashes of its inputs: leave --data out; clipguard "
                f"apply still compares each image with {SAMPLES}, and a scan into the folder brings all back"
            )
        folder = RunFolder.read(run)
        keys = class_keys_of(folder.manifest)
        inputs = check_inputs(folder.path / "stages" / "embeddings", data, options.limits, keys)
        checks["inputs"], skipped = list(inputs.files), dict(inputs.skipped)
    if options.model is not None:
        checks["model"] = [_check_model(run, options.model)]
    if options.guide is not None:
        checks["guide"] = _check_guide(run, options.guide)
    same = all(check.status == "ok" for part in checks.values() for check in part)
    value = {
        "run": str(run),
        "ok": same,
        "seal": described(run / SEAL)["sha256"],
        "counts": {part: dict(Counter(check.status for check in listed)) for part, listed in checks.items()},
        "skipped": skipped,
        "cleaned": None if cleaning is None else {"at": cleaning.at, "stages": [*cleaning.stages]},
        "files": [{"part": part, **asdict(check)} for part, listed in checks.items() for check in listed],
    }
    return Outcome(value=value, show=partial(_show, value), as_json=options.json, code=0 if same else DIFFERS)


def _recorded(run: Path, part: str) -> dict[str, Any]:
    entry = RunFolder.read(run).manifest.get(part)
    if not isinstance(entry, dict) or "sha256" not in entry:
        raise ClipguardError(f"run folder {run} records no {part} file: leave --{part} out")
    return entry


def _check_model(run: Path, model: Path) -> Checked:
    entry = _recorded(run, "model")
    return compared(str(model), model, {name: entry.get(name) for name in ("bytes", "sha256")})


def _check_guide(run: Path, guide: Path) -> list[Checked]:
    """Return the status of the guide's weights, and of a folder's config."""
    entry = _recorded(run, "guide")
    file = guide / WEIGHTS if guide.is_dir() else guide
    expected = {"bytes": file.stat().st_size if file.exists() else 0, "sha256": entry["sha256"]}
    checks = [compared(str(file), file, expected)]
    if guide.is_dir() and checks[0].status == "ok":
        from clipguard.clip.loading import load_clip

        same = load_clip(f"{FOLDER_PREFIX}{guide}").preprocessing_sha256 == entry.get("preprocessing_sha256")
        checks.append(Checked(path=str(guide / CONFIG), status="ok" if same else "changed"))
    return checks


def _show(value: dict[str, Any], console: "Console") -> None:
    for file in value["files"]:
        # Of millions of inputs, those that differ are what matters.
        if file["part"] != "inputs" or file["status"] != "ok":
            text = f"{file['status']:8} {file['path']}"
            console.print(one_line(text), soft_wrap=True, markup=False)
    for part, counts in value["counts"].items():
        texts = ", ".join(f"{count:,} {status}" for status, count in sorted(counts.items()))
        console.print(f"{part}: {texts}", markup=False)
    if value["skipped"]:
        console.print(f"inputs: {one_line(skipped_words(value['skipped']))}", soft_wrap=True, markup=False)
    if cleaned := value["cleaned"]:
        stages = ", ".join(cleaned["stages"]) or "unknown"
        text = (
            f"cleaned: {cleaned['at']}; no longer there to be checked: stages {stages}, hashes of the inputs"
        )
        console.print(one_line(text), soft_wrap=True, markup=False)
    elif "inputs" not in value["counts"]:
        console.print("inputs: not compared (give --data)", markup=False)
    console.print(f"seal: {value['seal']}", soft_wrap=True, markup=False)
