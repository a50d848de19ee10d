"""`export`: results in the format of another program."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from clipguard.cli.options import Json, unwrapped
from clipguard.cli.outcome import Outcome


@Parameter(name="*")
@unwrapped
@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What `export` takes.

    Attributes:
        to: Tables of all samples (csv, jsonl), issues for cleanlab's Datalab, labels for FiftyOne, the
            flagged samples as SARIF, or the repaired model as ONNX (extra onnx).
    """

    to: Literal["csv", "jsonl", "datalab", "fiftyone", "sarif", "onnx"]
    out: Annotated[
        Path | None, Parameter(name=("--out", "-o"), help="File to write; default: one in the run folder.")
    ] = None
    json: Json = False


def run_export(run: Path, options: ExportOptions) -> Outcome:
    """Return where the results were written; in the run folder they are sealed.

    Raises:
        ClipguardError: a run that is not finished, or that the format cannot hold.
    """
    from clipguard.runs import RunFolder

    folder = RunFolder.read(run)
    write: Callable[[Path, Path], None]
    if options.to == "onnx":
        from clipguard.models.onnx_file import ONNX, write_onnx

        usual, write = ONNX, write_onnx
    else:
        from clipguard.outputs.exports import EXPORTS

        usual, write = EXPORTS[options.to]
    if options.out is None:
        with folder.publishing(usual) as path:
            write(run, path)
    else:
        path = options.out
        write(run, path)
    return Outcome(
        value={"run": str(run), "format": options.to, "file": str(path)},
        show=lambda console: console.print(str(path), soft_wrap=True, markup=False, emoji=False),
        as_json=options.json,
    )
