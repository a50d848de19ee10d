"""The cells of a benchmark file at work, for what is drawn or measured beside `clipguard bench`."""

from pathlib import Path

from clipguard.cli.bench import cache_folder
from clipguard.lab.benchmark.cells import BenchmarkPaths, CellRunner
from clipguard.lab.benchmark.config import BenchConfig, cells, read_config

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SHARED = HERE.parents[1] / "shared" / "data"
CACHE = cache_folder()


def config_of(name: str) -> BenchConfig:
    """Return the benchmark in `NAME.toml`."""
    return read_config(HERE / f"{name}.toml")


def works(name: str) -> list[CellRunner]:
    """Return the cells of `NAME.toml`; victims and helper nets are those of `clipguard bench`."""
    config = config_of(name)
    lab = BenchmarkPaths(run=RESULTS / name, cache=CACHE, data=SHARED, beside=HERE)
    return [CellRunner(cell, lab, config.reference_seed) for cell in cells(config)]
