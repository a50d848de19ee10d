"""Labels and findings as FiftyOne reads image classifications: labels.json beside a folder of images."""

import json
from pathlib import Path, PurePosixPath
from typing import Any, Final

from clipguard.errors import ClipguardError
from clipguard.outputs.exports.rows import column_names, rows_of
from clipguard.runs import RunFolder
from clipguard.runs.files import replacing

ATTRIBUTES: Final = (
    *("predicted_label", "status", "reason", "poison_score", "q_value", "rank", "trigger", "sha256"),
)


def write_fiftyone(run: Path, file: Path) -> None:
    """Write the labels of a `FiftyOneImageClassificationDataset`, findings as attributes of each label.

    Raises:
        ClipguardError: the samples have no files of their own, which FiftyOne needs, or two have one name.
    """
    column_names(run)
    # The path of a sample in an archive or a table is no file of its own.
    if RunFolder.read(run).manifest["source"].get("kind") != "folder":
        raise ClipguardError(
            f"run {run} is of data without image files, which FiftyOne needs: scan an image folder"
        )
    labels: dict[str, Any] = {}
    for row in rows_of(run):
        path = row["path"]
        key = str(PurePosixPath(path).with_suffix(""))
        if key in labels:
            raise ClipguardError(
                f"run {run} has several images {key!r} that differ only in their ending, and FiftyOne knows "
                "images without it: export jsonl"
            )
        labels[key] = {
            "label": row["given_label"],
            "attributes": {name: row[name] for name in ATTRIBUTES},
        }
    with replacing(file) as part:
        part.write_text(json.dumps({"labels": labels}, allow_nan=False), encoding="ascii")
