"""`run_benchmark`: attacks x defences from Python, as the command `bench` runs them."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clipguard.compute.device import choose_device, computing_on
from clipguard.compute.threads import intra_op, training_threads
from clipguard.data.catalog import data_folder
from clipguard.errors import ClipguardError, one_line
from clipguard.lab.benchmark.config import BenchConfig, config_from, read_config
from clipguard.lab.benchmark.places import BenchmarkPaths, cache_folder
from clipguard.lab.benchmark.report import write_bench_report
from clipguard.lab.benchmark.results import Row, read_results
from clipguard.lab.benchmark.rows import BenchmarkSummary, run_bench
from clipguard.outputs.progress import Lines
from clipguard.types import Progress

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A benchmark's files, and what was computed.

    Attributes:
        summary: finished, computed, failed and busy rows, as numbers.
        results: results.parquet, a row a cell and defence.
        table: the same as Markdown.
        pictures: drawn of it; none without matplotlib.
    """

    summary: BenchmarkSummary
    results: Path
    table: Path
    pictures: tuple[Path, ...]

    @property
    def rows(self) -> list[Row]:
        """The rows of results.parquet: rates as fractions, settings and seconds, by name.

        Raises:
            ClipguardError: the file is missing or damaged.
        """
        return read_results(self.results.parent)

    def to_pandas(self) -> "pd.DataFrame":
        """Return results.parquet as a data frame.

        Raises:
            ClipguardError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ClipguardError("pandas is not installed: pip install pandas, or read .rows") from error
        return pd.read_parquet(self.results)


def run_benchmark(  # noqa: PLR0913  # those of the command, by name
    config: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    data: str | Path | None = None,
    cache: str | Path | None = None,
    download: bool = False,
    device: str | None = None,
    only: Sequence[str] = (),
    cells: str = "*",
    progress: Progress | Literal[False] | None = None,
) -> Benchmark:
    """Return a benchmark of attacks x defences; finished rows are kept, and the same call goes on from there.

    Beside the defences that the configuration names, every cell has the victim, the reference trained without
    poison, a retraining without flagged samples and a fine-tuning on all of the data.

    Args:
        config: a TOML file, or a mapping of the same keys: data, attacks, rates, guides, nets, seeds,
            defenses. Relative paths start from the file's folder, or from the working directory.
        out: folder of the benchmark.
        data: folder of the data sets that are known by name; None takes CLIPGUARD_DATA or the user's cache.
        cache: folder of victims, fitted attacks and embeddings, shared by all benchmarks; None takes
            CLIPGUARD_CACHE or the user's cache.
        download: fetch data sets known by name that are not there.
        device: as for `Defender`.
        only: labels of the rows to compute; () takes all.
        cells: pattern of the names of the cells to compute.
        progress: called with (step, done, total) as work goes on. None shows progress on stderr, False none.

    Raises:
        ClipguardError: the configuration is no benchmark, or a file of the run is damaged. A row that cannot
            be computed raises nothing: `summary.failed` counts it, and its column `error` says why.
    """
    benchmark, origin, beside = _read(config)
    show = Lines(sys.stderr.write) if progress is None else progress or (lambda step, done, total: None)
    paths = BenchmarkPaths(
        run=Path(out),
        cache=cache_folder() if cache is None else Path(cache),
        data=data_folder() if data is None else Path(data),
        beside=beside,
        download=download,
        progress=show,
    )
    command = f"clipguard.run_benchmark({origin!r}, {str(out)!r})"
    summary = run_rows(benchmark, paths, command, device=device, only=only, cells=cells)
    (table, *pictures), missing = write_bench_report(paths.run)
    if missing:
        show(missing, 0, 0)
    return Benchmark(
        summary=summary, results=paths.run / "results.parquet", table=table, pictures=tuple(pictures)
    )


def run_rows(
    config: BenchConfig,
    paths: BenchmarkPaths,
    command: str,
    *,
    device: str | None,
    only: Sequence[str],
    cells: str,
) -> BenchmarkSummary:
    """Return what there is once the missing rows are computed, from Python and by the command alike.

    Args:
        config: the benchmark.
        paths: where it works, and what is called as rows are done.
        command: as the user has given it, for the rows.
        device: as for `Defender`.
        only: labels of the rows to compute; () takes all.
        cells: pattern of the names of the cells to compute.

    Raises:
        ClipguardError: as `run_bench`.
    """
    with computing_on(choose_device(device)), intra_op(training_threads()):
        return run_bench(
            config, paths, command, lambda line: paths.progress(one_line(line), 0, 0), only, cells
        )


def _read(config: str | Path | Mapping[str, Any]) -> tuple[BenchConfig, str, Path]:
    """Return the benchmark, what messages call its origin, and the folder where its paths start."""
    if isinstance(config, Mapping):
        return config_from(config, "config"), "config", Path.cwd()
    path = Path(config)
    return read_config(path), str(path), path.parent
