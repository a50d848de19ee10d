"""What a finished scan or repair publishes, from the command line and from Python alike: summary and page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from clipguard.outputs.report import write_report
from clipguard.pipeline.computing import FEATURES_FILE
from clipguard.pipeline.defender import Defender
from clipguard.pipeline.model_card import MODEL_CARD
from clipguard.pipeline.quality_stage import QUALITY_FILE
from clipguard.pipeline.samples import FLAGGED_TABLE
from clipguard.pipeline.summary import write_summary
from clipguard.runs.samples_table import SAMPLES
from clipguard.runs.summary import RunSummary

MODEL: Final = "model.safetensors"
NO_FILES: Final[Mapping[str, str]] = {}


def publish(
    defender: Defender,
    command: str,
    *,
    files: Mapping[str, str] = NO_FILES,
    model: str | None = None,
    **measured: Any,
) -> RunSummary:
    """Return the summary, now in the run folder together with the report.

    Args:
        defender: whose results are published.
        command: scan, defend or demo.
        files: what else will lie in the run folder, by name.
        model: the given model in words.
        measured: `before`, `after` and `detection` of a repair, as `write_summary` takes them.

    Raises:
        ClipguardError: the run folder cannot be written.
    """
    run = Path(defender.run_dir)
    written = {"report": "report.html", "samples": SAMPLES, "flagged": FLAGGED_TABLE}
    if measured:
        written |= {"model": MODEL, "card": MODEL_CARD}
    elif (run / MODEL).exists():
        defender.warnings_.append(f"{run / MODEL} is of an earlier repair: a scan makes no model")
    if "quality" in defender.stages_:
        written["quality"] = QUALITY_FILE
    if "feature_separation" in defender.stages_:
        written["labels"] = FEATURES_FILE
    places = {name: str(run / file) for name, file in {**written, **files}.items()}
    summary = write_summary(defender, command, files=places, model=model, **measured)
    write_report(run)
    return summary
