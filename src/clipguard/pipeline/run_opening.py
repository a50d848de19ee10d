"""Opening a run folder: for which data, with which settings, and what of an earlier run holds on."""

from dataclasses import asdict
from pathlib import Path

from clipguard.clip.zero_shot import ClipGuide
from clipguard.compute.device import CPU, current_device
from clipguard.compute.threads import idle_training_threads, threads_are_chosen
from clipguard.data import ImageSource
from clipguard.data.provenance import recorded_source
from clipguard.pipeline.config import DefenseConfig
from clipguard.runs import Arithmetic, RunFolder, SourceInfo
from clipguard.runs.changes import changed_settings
from clipguard.runs.cleaning import CLEANED, cleaning_of
from clipguard.types import Progress


def open_run(
    run_dir: str | Path, source: ImageSource, guide: ClipGuide, config: DefenseConfig, progress: Progress
) -> RunFolder:
    """Return the run folder of a source, after saying what of it will be replaced.

    Raises:
        ClipguardError: it is of other data, or something else.
    """
    info = SourceInfo(
        kind=source.kind,
        location=source.location,
        key=_source_key(Path(run_dir), source, progress),
        n=len(source),
        class_names=source.class_names,
        class_keys=source.class_keys,
        from_path=source.opened is not None,
    )
    settings = {"guide": guide.name, "templates": guide.prompts, "defense": asdict(config)}
    device = current_device() or CPU
    run = RunFolder.open(
        run_dir,
        info,
        settings,
        seed=config.seed,
        arithmetic=Arithmetic(
            threads=_training_threads(Path(run_dir)),
            device=device.description,
            trained_in=device.trained_in,
        ),
    )
    if replaced := changed_settings(run):
        progress(replaced, 0, 0)
    if cleaning := cleaning_of(run.path):
        progress(f"{cleaning.words(run.path)}: all is computed anew", 0, 0)
        run.retract(CLEANED)
    return run


def _training_threads(run_dir: Path) -> int:
    """Return how many threads train one net: as many as in an earlier command of the run, unless told."""
    threads = idle_training_threads()
    if threads_are_chosen() or not (run_dir / "manifest.json").exists():
        return threads
    known = RunFolder.read(run_dir).manifest.get("threads")
    return known if isinstance(known, int) and known > 0 else threads


def _source_key(run_dir: Path, source: ImageSource, progress: Progress) -> str:
    """Return the key under which a run folder knows the source: its own where only the files' dates differ.

    Only where the listing differs from that of the run are the contents read to be compared.
    """
    if not (run_dir / "manifest.json").exists():
        return source.key
    run = RunFolder.read(run_dir)
    known, reading = str(run.manifest["source"]["key"]), run.finished("embeddings")
    if known == source.key or reading is None:
        return source.key
    progress("compare the data with those of the run", 0, len(source))
    same = source.fingerprint == recorded_source(reading.path)["fingerprint"]
    progress("compare the data with those of the run", len(source), len(source))
    return known if same else source.key
