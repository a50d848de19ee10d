"""Run folders: values <-> disk, and a cache of finished stages. Knows nothing of the truth."""

from clipguard.store.files import (
    read_array,
    read_image_set,
    read_json,
    read_table,
    write_array,
    write_image_set,
    write_json,
    write_table,
    write_text,
)
from clipguard.store.runs import RunFolder, SourceInfo, Stage

__all__ = [
    "RunFolder",
    "SourceInfo",
    "Stage",
    "read_array",
    "read_image_set",
    "read_json",
    "read_table",
    "write_array",
    "write_image_set",
    "write_json",
    "write_table",
    "write_text",
]
