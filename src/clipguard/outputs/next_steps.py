"""What to do after a run: commands to copy, with the names of this run in them."""

import shlex
from typing import Any, Final, NamedTuple

from clipguard.runs.summary import RunSummary

_PATHS: Final = ("folder", "parquet", "tar", "npz")
"""Kinds of sources that a command can be given by their path."""


class Step(NamedTuple):
    """Something to do: what it brings, and the command; empty where there is none."""

    words: str
    command: str = ""


def next_steps(run: RunSummary, source: dict[str, Any], flagged: int) -> list[Step]:
    """Return what to do next, in order.

    Args:
        run: what the run says of itself.
        source: of the manifest.
        flagged: number of flagged samples.
    """
    data = shlex.quote(run.data.location) if str(source.get("kind")) in _PATHS else "SOURCE"
    folder = shlex.quote(run.run_dir)
    export = Step("Hand the list of samples to other tools.", f"clipguard export {folder} --to csv")
    if not flagged:
        proof = Step("Prove later that nothing has changed.", f"clipguard verify {folder} --data {data}")
        return [export, proof]
    steps = [
        Step(
            "Look at the flagged samples below. Mark those to keep and those to drop, then save reviews.json."
        ),
        Step(
            "Copy what can be kept. The data themselves stay as they are.",
            f"clipguard apply {folder} {data} --out CLEAN",
        ),
        export,
    ]
    if run.after is None:
        steps.append(
            Step(
                "Repair a model that was trained on these data.",
                f"clipguard defend {data} --model MODEL.safetensors -o {folder}",
            )
        )
    return steps
