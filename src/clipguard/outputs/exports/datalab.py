"""Findings as cleanlab's Datalab keeps issues: a flag and a score a sample, low scores first to look at."""

from pathlib import Path

import numpy as np

from clipguard.outputs.exports.rows import column_names
from clipguard.runs import read_table, write_table
from clipguard.runs.samples_table import SAMPLES, source_order

DESCRIPTIONS = {
    "is_backdoor_issue": "whether the sample is flagged for a trigger",
    "backdoor_score": "1 - poison_score (0 to 1, low is suspicious)",
    "is_changed_label_issue": "whether the sample is flagged for its label alone",
    "changed_label_score": "probability of the given label by the guide (0 to 1, low is suspicious)",
}


def write_datalab(run: Path, file: Path) -> None:
    """Write a Parquet file in the order of the source: names, both labels, flags and scores of two issues."""
    column_names(run)
    table = read_table(run / SAMPLES)
    order = source_order(table["row"])
    table = {name: values[order] for name, values in table.items()}
    names = ("row", "id", "path", "given_label", "predicted_label")
    columns = {
        **{name: table[name] for name in names},
        "is_backdoor_issue": table["reason"] == "trigger",
        "backdoor_score": 1 - table["poison_score"],
        "is_changed_label_issue": table["reason"] == "label",
        "changed_label_score": np.exp(-table["guide_nll"]),
    }
    write_table(file, columns, descriptions=DESCRIPTIONS)
