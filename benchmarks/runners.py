"""The cells of a benchmark file, for figures that are drawn or measured beside `clipguard bench`."""

from pathlib import Path

from clipguard.lab.benchmark.cells import CellRunner
from clipguard.lab.benchmark.config import cells, read_config
from clipguard.lab.benchmark.places import BenchmarkPaths, cache_folder

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SHARED = HERE.parents[1] / "shared" / "data"
CACHE = cache_folder()


def runners(name: str) -> list[CellRunner]:
    """Return the cells of `NAME.toml`; victims and fitted attacks are those of `clipguard bench`."""
    config = read_config(HERE / f"{name}.toml")
    paths = BenchmarkPaths(run=RESULTS / name.removeprefix("table-"), cache=CACHE, data=SHARED, beside=HERE)
    return [CellRunner(cell, paths, config.reference_seeds) for cell in cells(config)]
