"""Run folders: values <-> disk, and a cache of finished stages. Knows nothing of the truth."""

from clipguard.runs.files import (
    read_array,
    read_json,
    read_rows,
    read_table,
    replacing,
    write_array,
    write_json,
    write_pieces,
    write_table,
    write_text,
)
from clipguard.runs.run_folder import Arithmetic, RunFolder, SourceInfo
from clipguard.runs.seal import SEAL, described
from clipguard.runs.sharded_array import ShardedArray
from clipguard.runs.stage import DescribedStage, FinishedStage, Stage, resume_folder
from clipguard.runs.verify import Checked, compared, verify_run

__all__ = [
    "SEAL",
    "Arithmetic",
    "Checked",
    "DescribedStage",
    "FinishedStage",
    "RunFolder",
    "ShardedArray",
    "SourceInfo",
    "Stage",
    "compared",
    "described",
    "read_array",
    "read_json",
    "read_rows",
    "read_table",
    "replacing",
    "resume_folder",
    "verify_run",
    "write_array",
    "write_json",
    "write_pieces",
    "write_table",
    "write_text",
]
