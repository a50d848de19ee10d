"""What a finished scan or repair publishes, from the command line and from Python alike: summary and page."""

from pathlib import Path
from typing import Any, Final

from clipguard.outputs.report import write_report
from clipguard.outputs.samples import SAMPLES
from clipguard.pipeline.computing import FEATURES_FILE
from clipguard.pipeline.defender import Defender
from clipguard.pipeline.summary import write_summary
from clipguard.runs.summary import RunSummary

MODEL: Final = "model.safetensors"


def publish(defender: Defender, command: str, *, model: str | None = None, **measured: Any) -> RunSummary:
    """Return the summary, now in the run folder together with the report.

    Args:
        defender: whose results are published.
        command: scan, defend or demo.
        model: the given model in words.
        measured: `before`, `after` and `detection` of a repair, as `write_summary` takes them.

    Raises:
        ClipguardError: the run folder cannot be written.
    """
    run = Path(defender.run_dir)
    files = {"report": "report.html", "samples": SAMPLES}
    if measured:
        files["model"] = MODEL
    elif (run / MODEL).exists():
        defender.warnings_.append(f"{run / MODEL} is of an earlier repair: a scan makes no model")
    if "feature_separation" in defender.stages_:
        files["labels"] = FEATURES_FILE
    places = {name: str(run / file) for name, file in files.items()}
    summary = write_summary(defender, command, files=places, model=model, **measured)
    write_report(run)
    return summary
