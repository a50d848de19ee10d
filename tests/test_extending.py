"""The example of docs/architecture.md: a new signal takes a module, a stage and a line of `SIGNALS`."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from clipguard.pipeline import scanning, stages
from clipguard.runs import read_array, write_array
from clipguard.types import State, chunks
from tiny_runs import poisoned_set, samples_of, scanned

DOCUMENT = Path(__file__).parents[1] / "docs" / "architecture.md"


def example() -> list[str]:
    """Return the code blocks of the worked example: module, stage, signal."""
    text = (
        DOCUMENT.read_text().split("### Worked example: a signal")[1].split("### Worked example: a metric")[0]
    )
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_documents_example_is_a_signal_that_moves_the_partition_and_adds_a_column(tmp_path, monkeypatch):
    data, _ = poisoned_set()
    before = scanned(tmp_path / "before", data)
    module, stage, signal = example()
    names = {**vars(stages), **vars(scanning), "np": np, "replace": replace, "read_array": read_array}
    names |= {"write_array": write_array, "State": State, "chunks": chunks}
    annotations = r' -> [^:]*?(?=:\n)|: (?:Rows|Partition|Float64\[np\.ndarray, "n"\])(?=[,)])'
    exec(re.sub(annotations, "", module), names)
    exec(stage, names)
    exec(re.sub(annotations, "", signal), names)
    monkeypatch.setattr(stages, "STAGES", (*stages.STAGES, names["BRIGHTNESS"]))
    monkeypatch.setattr(scanning, "SIGNALS", (*scanning.SIGNALS, names["exclude_extremes"]))

    after = scanned(tmp_path / "after", data)
    samples = samples_of(tmp_path / "after")
    assert np.allclose(samples["brightness"], data.images.mean((1, 2, 3)))
    extreme = [samples["brightness"].argmin(), samples["brightness"].argmax()]
    moved = ~before.partition.flagged[extreme]
    assert (after.partition.state[extreme][moved] == State.EXCLUDED).all()
    assert after.partition.counts["excluded"] > before.partition.counts["excluded"]
    assert after.context.finished["brightness"].path.name == "brightness"
