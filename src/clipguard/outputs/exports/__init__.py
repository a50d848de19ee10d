"""Results in the formats of other programs: each is a function from run folder to file."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from clipguard.outputs.exports.datalab import write_datalab
from clipguard.outputs.exports.fiftyone import write_fiftyone
from clipguard.outputs.exports.tables import write_csv_table, write_json_lines
from clipguard.outputs.formats import FILES, write_format

EXPORTS: Final[dict[str, tuple[str, Callable[[Path, Path], None]]]] = {
    "csv": ("samples.csv", write_csv_table),
    "jsonl": ("samples.jsonl", write_json_lines),
    "datalab": ("datalab.parquet", write_datalab),
    "fiftyone": ("fiftyone.json", write_fiftyone),
    "sarif": (FILES["sarif"][0], partial(write_format, "sarif")),
}
"""The formats: usual name of the file, and what writes it, given run folder and file."""

__all__ = ["EXPORTS"]
