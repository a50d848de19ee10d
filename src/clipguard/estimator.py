"""`Defender` for Python: scikit-learn's contract, progress, pandas, and the files of the command line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from markupsafe import Markup
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from torch import nn

from clipguard.data import ImageSource
from clipguard.data.class_names import Classes
from clipguard.errors import ClipguardError
from clipguard.models.preprocessing import described
from clipguard.models.spec import ModelSpec
from clipguard.outputs.findings import finding_rows
from clipguard.outputs.progress import displayed
from clipguard.outputs.text import VERDICTS
from clipguard.pipeline.defender import Defender as QuietDefender
from clipguard.pipeline.summary import own_rates
from clipguard.publishing import publish
from clipguard.runs.samples_table import SAMPLES
from clipguard.types import Progress

if TYPE_CHECKING:
    import pandas as pd

OF_SCAN: Final = frozenset(
    ("partition_", "samples_", "scan_", "stages_", "summary_", "triggers_", "verdict_", "warnings_")
)
"""Attributes that `scan` sets, and `fit` as well."""

OF_FIT: Final = frozenset(("before_", "history_", "model_", "spec_", "trained_on_"))
"""Attributes that only `fit` sets."""

_PAGE: Final = Markup(
    "<div><p><b>{title}</b>: {sentence}. {flagged} of {n} samples are flagged.</p>{findings}"
    "<p>Report: <code>{report}</code>; notes: {notes}</p></div>"
)
_FINDINGS: Final = Markup(
    "<table><thead><tr><th>class<th>kind<th>flagged<th>at least</tr></thead><tbody>{rows}</tbody></table>"
)
_FINDING: Final = Markup("<tr><td>{}<td>{}<td>{}<td>{}</tr>")


class Defender(BaseEstimator, QuietDefender):  # type: ignore[misc]  # scikit-learn has no types
    """Scans an untrusted data set, and repairs a model that was trained on it.

    The constructor only stores, as scikit-learn's estimators do: `get_params`, `set_params` and `clone` work.
    `scan` and `fit` write what the command line writes into the run folder: the table of samples, the page,
    summary.json and, after `fit`, the repaired model. Every stage is cached there; running again resumes.

    Example:
        >>> from clipguard import Defender
        >>> defender = Defender(guide="mini", run_dir="runs/vendor-a")
        >>> defender.scan("./images").verdict_.answer  # doctest: +SKIP
        'suspicious'
        >>> defender.to_pandas().query("status == 'flagged'")  # doctest: +SKIP

    Args:
        guide: the CLIP that reads the labels: a `ClipGuide` or its name, such as `mini`; None is open_clip's
            `ViT-B-32`, whose weights are downloaded once.
        run_dir: folder of the run.
        config: all other settings.
        progress: called with (step, done, total) as work goes on; from other threads, too, one at a time.
            None shows progress on stderr, False shows none.
        engine: who reads and embeds the data, shard by shard; by default this process.
        embeddings: folder of embeddings that the guide has computed elsewhere, in clip-retrieval's layout.
        second_guide: another CLIP that reads the labels, too. It changes no result: where it differs is
            reported.
        device: `cpu`, `cuda`, `cuda:N`, or `auto`, the first GPU that works or else the processor; None takes
            the one in CLIPGUARD_DEVICE, else `auto`.
        threads: that compute at once; None takes OMP_NUM_THREADS, else all cores that there are, of which one
            training takes those that are idle when the run begins.
        quality: whether duplicates, label errors and odd images are looked for, too; they change no other
            result.
        baseline: run folder of an earlier scan by the same guide; only images that it lacks are embedded.
        reviews: file of review marks, which have the last word on what becomes of a sample; None takes
            reviews.json of the run folder or of the baseline's, if there.

    Attributes:
        verdict_: the answer (clean, suspicious or undecided) with reasons, findings and power.
        partition_: what becomes of every sample, in the order of the source.
        samples_: the table of samples as arrays by name; `to_pandas` gives a data frame.
        triggers_: what the flagged samples share: none, one, or one a target.
        warnings_: what should be known of the run, as sentences.
        summary_: what summary.json holds.
        stages_: the finished stages by name, in their order.
        scan_: all that the scan knows, for research.
        model_: the repaired model; the victim itself where nothing is flagged. After `fit`, as what follows.
        before_: the victim.
        spec_: how the model is built, and how it takes its images.
        history_: of the repair, as arrays by name.
        trained_on_: the scan with the images and samples that the model was trained on.
    """

    _display: Progress | None = None

    def scan(self, X: object, y: object = None, *, classes: Classes | None = None) -> "Defender":  # noqa: N803  # scikit-learn's name
        """Return self with verdict, table of samples and partition; the page and the summary are written.

        Args:
            X: the images with their labels: whatever `ImageSource.open` takes, such as a path or a data set
                object; or images alone, with their labels in y.
            y: the labels of the images in X.
            classes: names of the classes in the order of the labels, or by folder name or label number.

        Raises:
            ClipguardError: bad input; one line says what to do.
        """
        source = self._source(X, y, classes)
        with self._showing():
            super().scan(source)
            self.summary_ = publish(self, "scan")
        return self

    def fit(
        self,
        X: object,  # noqa: N803  # scikit-learn's name
        y: object = None,
        *,
        classes: Classes | None = None,
        model: str | Path | nn.Module | None = None,
        spec: ModelSpec | None = None,
    ) -> "Defender":
        """Return self with a model without the backdoor, after a scan; model.safetensors holds it, too.

        Args:
            X: the untrusted images with their labels, as for `scan`.
            y: the labels of the images in X.
            classes: names of the classes, as for `scan`.
            model: the victim: a safetensors file or a module; None trains one here first.
            spec: how to build the file's model; not needed for a file that clipguard wrote.

        Raises:
            ClipguardError: bad input; one line says what to do.
        """
        source = self._source(X, y, classes)
        with self._showing():
            super().fit(source, model=model, spec=spec)
            words = None if model is None else _words(self.spec_)
            before, after = own_rates(self)
            self.summary_ = publish(self, "defend", model=words, before=before, after=after)
        return self

    def to_pandas(self) -> "pd.DataFrame":
        """Return the table of samples, a row a sample, as samples.parquet holds it.

        Raises:
            ClipguardError: pandas is not installed.
            sklearn.exceptions.NotFittedError: nothing was scanned.
        """
        path = self.scan_.context.run.path / SAMPLES
        try:
            import pandas as pd
        except ImportError as error:
            raise ClipguardError(f"pandas is not installed: pip install pandas, or read {path}") from error
        return pd.read_parquet(path)

    def _source(self, X: object, y: object, classes: Classes | None) -> ImageSource:  # noqa: N803  # as above
        if isinstance(X, ImageSource):
            if y is not None or classes is not None:
                raise ClipguardError("an ImageSource has labels and class names: leave y and classes out")
            return X
        source = ImageSource.open(X if y is None else (X, y), classes=classes)
        data, run = source.opened and source.opened.path.resolve(), Path(self.run_dir)
        # The run would be one more class of the folder the next time.
        if source.kind == "folder" and data and run.resolve().is_relative_to(data):
            raise ClipguardError(f"run folder {run} lies inside the data {data}: give one outside")
        return source

    @contextmanager
    def _showing(self) -> Iterator[None]:
        """Show progress on stderr inside the block, unless somebody else is to be called or nobody."""
        if self.progress is not None:
            yield
            return
        with displayed() as self._display:
            try:
                yield
            finally:
                del self._display

    def _reporting(self) -> Progress:
        return self._display or super()._reporting()

    def __sklearn_is_fitted__(self) -> bool:
        """Return whether there is a scan."""
        return "scan_" in vars(self)

    def _repr_html_(self) -> str:
        """Return the verdict in short, for notebooks; all that comes from the data is escaped."""
        if not self.__sklearn_is_fitted__():
            return str(Markup("<pre>{}</pre>").format(repr(self)))
        findings = finding_rows(self.verdict_.findings)
        rows = Markup("").join(
            _FINDING.format(one.class_name, one.kind, one.flagged, one.at_least) for one in findings
        )
        answer = VERDICTS[self.verdict_.answer]
        return str(
            _PAGE.format(
                title=answer.title,
                sentence=answer.sentence,
                flagged=f"{int(self.partition_.flagged.sum()):,}",
                n=f"{len(self.scan_.data):,}",
                findings=_FINDINGS.format(rows=rows) if findings else "",
                report=Path(self.run_dir) / "report.html",
                notes=len(self.warnings_),
            )
        )

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        # scikit-learn's own shows the parameters alone.
        return {"text/plain": repr(self), "text/html": self._repr_html_()}

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Say which call sets an attribute that is not there yet."""
            call = "scan(X) or fit(X)" if name in OF_SCAN else "fit(X)" if name in OF_FIT else None
            if call is None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            raise NotFittedError(f"this Defender has no {name} yet: call {call} first")


def _words(spec: ModelSpec) -> str:
    return f"{spec.architecture}, {described(spec.preprocessing)}"
