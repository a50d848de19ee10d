"""The cells of a benchmark file, for figures that are drawn or measured beside `clipguard bench`."""

from pathlib import Path

from clipguard.cli.places import cache_folder
from clipguard.data import ImageSource
from clipguard.lab.benchmark.cells import BenchmarkPaths, CellRunner
from clipguard.lab.benchmark.config import cells, read_config
from clipguard.pipeline import DefenseConfig, Scan
from clipguard.pipeline.defender import Defender
from clipguard.types import ImageSet

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SHARED = HERE.parents[1] / "shared" / "data"
CACHE = cache_folder()


def runners(name: str) -> list[CellRunner]:
    """Return the cells of `NAME.toml`; victims and fitted attacks are those of `clipguard bench`."""
    config = read_config(HERE / f"{name}.toml")
    paths = BenchmarkPaths(run=RESULTS / name, cache=CACHE, data=SHARED, beside=HERE)
    return [CellRunner(cell, paths, config.reference_seed) for cell in cells(config)]


def scanned(runner: CellRunner, data: ImageSet, config: DefenseConfig, run: Path) -> Scan:
    """Return the scan of a set at the size of the cell's victim, with the cell's guide."""
    runner.guide.foresee(data)
    source = ImageSource.open((data.images, data.labels), classes=data.class_names)
    size = data.images.shape[1:3]
    return Defender(runner.guide, run, plan=config).scan(source, model_size=size).found_
