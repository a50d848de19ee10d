"""All hostile inputs, and what really comes of one."""

from collections.abc import Iterator
from pathlib import Path

from clipguard.errors import ClipguardError
from clipguard.safety.limits import Limits
from hostile.archives import archive_cases
from hostile.benchmarks import benchmark_cases
from hostile.case import MARK, Case, Outcome
from hostile.folders import folder_cases
from hostile.images import image_cases
from hostile.tables import table_cases
from hostile.weight_files import weight_cases


def cases() -> Iterator[Case]:
    """Return every case of the catalogue."""
    yield from image_cases()
    yield from folder_cases()
    yield from table_cases()
    yield from archive_cases()
    yield from weight_cases()
    yield from benchmark_cases()


def run(case: Case, root: Path) -> tuple[Outcome, str]:
    """Return what comes of a case whose input is made in the empty folder `root`, and its message."""
    made = case.make(root)
    try:
        return _read(case, made)
    except ClipguardError as error:
        message = str(error)
        assert message.isprintable(), message
        return "refused", message


def _read(case: Case, made: object) -> tuple[Outcome, str]:
    from clipguard.clip.loading import load_clip
    from clipguard.data import ImageSource
    from clipguard.data.decode import read_images
    from clipguard.lab.benchmark.config import cells, read_config
    from clipguard.models.spec import load, read_spec
    from clipguard.types import Preprocessing

    if case.reader == "benchmark":
        list(cells(read_config(Path(str(made)))))
        return "accepted", ""
    if case.reader == "guide":
        load_clip(str(made))
        return "accepted", ""
    if case.reader == "model":
        path = Path(str(made))
        spec = read_spec(path)
        if spec is None:
            raise ClipguardError("the file does not say how it is built")
        load(path, spec)
        return "accepted", ""
    names: object = case.classes
    if case.reader == "names":
        assert isinstance(made, tuple)
        made, names = made
    limits = Limits(**dict(case.limits))
    source = ImageSource.open(made, classes=names, limits=limits)  # type: ignore[arg-type]  # wrong types, too
    images, unreadable = read_images(source, Preprocessing(size=(8, 8)))
    assert len(images) + len(unreadable) == len(source) + len(source.refused), "an image was lost"
    if unreadable:
        assert all(entry.reason and entry.reason.isprintable() for entry in unreadable)
        return "listed", f"{unreadable[0].id}: {unreadable[0].reason}"
    return "accepted", ""


def executed(root: Path) -> bool:
    """Tell whether a booby trap of the case has run."""
    return (root / MARK).exists() or Path(MARK).exists()
