"""What to do after a run: commands to copy, with the names of this run in them."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from clipguard.runs.summary import RunSummary

LIMITS: Final = "limits"
OPTIONS: Final = (
    *("guide", "second_guide", "template", "logit_scale", "classes", "rows"),
    *("image_column", "label_column", "group_column", "size", "early_model", "rank_within", LIMITS),
    *("embeddings", "quality", "power", "seed", "baseline"),
)
"""What decides the results of a scan, by the names that a manifest has for it.

No others are taken from a manifest, which may be anybody's, nor what would run code: `module:factory`.
"""

_UNTOUCHED: Final = "isolated"
"""A limit that changes no result."""


class Step(NamedTuple):
    """Something to do: what it brings, and the command; empty where there is none."""

    words: str
    command: str = ""


def next_steps(run: RunSummary, manifest: Mapping[str, Any], flagged: int) -> list[Step]:
    """Return what to do next, in order.

    Args:
        run: what the run says of itself.
        manifest: of the run; what was chosen otherwise than by default is chosen again.
        flagged: number of flagged samples.
    """
    source, given = manifest.get("source"), manifest.get("options")
    from_path = isinstance(source, Mapping) and source.get("from_path") is True
    data = shlex.quote(run.data.location) if from_path else "SOURCE"
    folder = shlex.quote(run.run_dir)
    chosen = given if isinstance(given, Mapping) else {}
    limits = "".join(f" {option}" for option in _options(chosen, (LIMITS,)))
    export = Step("Hand the list of samples to other tools.", f"clipguard export {folder} --to csv")
    if not flagged:
        check = f"clipguard verify {folder} --data {data}{limits}"
        return [export, Step("Prove later that nothing has changed.", check)]
    steps = [
        Step(
            "Look at the flagged samples below. Mark those to keep and those to drop, then save reviews.json."
        ),
        Step(
            "Copy what can be kept. The data themselves stay as they are.",
            f"clipguard apply {folder} {data} --out CLEAN{limits}",
        ),
        export,
    ]
    if run.after is None:
        options = "".join(f" {option}" for option in _options(chosen, OPTIONS))
        steps.append(
            Step(
                "Repair a model that was trained on these data.",
                f"clipguard defend {data} --model MODEL.safetensors -o {folder}{options}",
            )
        )
    return steps


def _options(chosen: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[str]:
    """Return the options of some names as they are typed."""
    for name in names:
        value = chosen.get(name)
        if name == LIMITS:
            for limit, bound in value.items() if isinstance(value, Mapping) else ():
                if str(limit).isidentifier() and limit != _UNTOUCHED:
                    yield from _typed(f"limits.{limit}", bound)
        elif name == "early_model" and ":" in str(value):
            continue
        elif name == "classes" and isinstance(value, list):
            # They were given in Python; a command takes them from a file.
            yield "--classes NAMES.txt"
        else:
            yield from _typed(name, value)


def _typed(name: str, value: object) -> Iterator[str]:
    """Return an option as it is typed, once for each value of a list; nothing for what no option takes."""
    option = name.replace("_", "-")
    if isinstance(value, bool):
        group, dot, last = option.rpartition(".")
        yield f"--{option}" if value else f"--{group}{dot}no-{last}"
    elif isinstance(value, (str, int, float)):
        yield f"--{option} {shlex.quote(str(value))}"
    elif isinstance(value, list):
        yield from (f"--{option} {shlex.quote(text)}" for text in value if isinstance(text, str))
