"""Records of BackdoorBench as image sets: the one place that reads pickled data, in a process of its own.

A record is a folder: `attack_result.pt`, and the changed images as PNG files beside it. Nothing else of this
package imports this module but the command `convert`; `scan` and `defend` cannot reach it.
"""

import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from jaxtyping import Int64

from clipguard.data import Failed, Item
from clipguard.data.decode import Decoder
from clipguard.data.decode.pixels import Views
from clipguard.data.listing import fault
from clipguard.errors import ClipguardError
from clipguard.lab.attacks.poisoning import rebuilt, truth_of
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.safety.limits import Limits, read_bounded
from clipguard.types import Images, ImageSet, Preprocessing

RECORD: Final = "attack_result.pt"
MEMORY: Final = 8 << 30
"""Bytes that reading a record may take: a small file can claim a tensor of any size."""
NAME: Final = 100
"""Characters of a name in a record; what is longer is no name."""
PATIENCE: Final = 600.0
"""Seconds by the clock that reading a record may take."""


class Change(NamedTuple):
    """A changed sample: its row, its label after and before the attack, and the path of its image."""

    row: int
    label: int
    original: int
    path: str


class Changes(msgspec.Struct, frozen=True):
    """The samples of one set, of `n`, that the attack changed."""

    n: int
    entries: list[Change]

    @property
    def columns(self) -> Int64[np.ndarray, "3 p"]:
        """Rows, labels and original labels."""
        return np.array([entry[:3] for entry in self.entries], dtype=np.int64).reshape(-1, 3).T


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a record, apart from the weights.

    Attributes:
        num_classes: k.
        size: height and width of its images.
        train: changes to the training set.
        test: test images with the trigger, of the classes that it is meant to change.
        net: what the record calls its model's architecture.
        clean_data: what it calls the data set.
    """

    num_classes: int
    size: tuple[int, int]
    train: Changes
    test: Changes
    net: str = ""
    clean_data: str = ""

    @property
    def target_mapping(self) -> Int64[np.ndarray, "k"]:
        """The class that each class is sent to; itself where no test image is.

        Raises:
            ClipguardError: one class is sent to several.
        """
        _, labels, original = self.test.columns
        target_mapping = np.arange(self.num_classes)
        target_mapping[original] = labels
        if not np.array_equal(target_mapping[original], labels):
            raise ClipguardError(f"{RECORD} sends one class to several others: it cannot be judged here")
        return target_mapping


def read_record(folder: Path, weights: Path) -> Record:
    """Return the record in `folder` and write its model's weights to `weights` (safetensors).

    Raises:
        ClipguardError: there is none, or it holds anything but plain data, arrays and tensors.
    """
    file = folder / RECORD
    if not file.is_file():
        raise ClipguardError(f"{folder} has no {RECORD}: give the folder of a BackdoorBench record")
    # With -P nothing is imported from the working folder, which may be the stranger's.
    command = [sys.executable, "-P", "-m", "clipguard.lab.backdoorbench", str(file), str(weights)]
    try:
        process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise ClipguardError(f"{file} cannot be converted: it takes more than {PATIENCE:g} s") from error
    if process.returncode:
        last = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise ClipguardError(f"{file} cannot be converted: {last}")
    try:
        record = msgspec.json.decode(process.stdout, type=Record)
        labels = np.concatenate([record.train.columns[1:], record.test.columns[1:]], axis=1)
        if not np.isin(labels, np.arange(record.num_classes)).all():
            raise ValueError("a label is no class")
    except (ValueError, OverflowError) as error:
        raise ClipguardError(f"{file} is no record that can be read: make it anew") from error
    train, test = (_within(changes, folder) for changes in (record.train, record.test))
    return msgspec.structs.replace(record, train=train, test=test)


def _within(changes: Changes, folder: Path) -> Changes:
    """Return changes whose images are below `folder`, where the record lies now."""
    entries = [entry._replace(path=str(_beside(entry.path, folder))) for entry in changes.entries]
    return Changes(changes.n, entries)


def _beside(path: str, folder: Path) -> Path:
    """Return the image's place below `folder`: the record keeps that of the machine that made it."""
    parts = PurePosixPath(path).parts[-3:]
    image = folder.joinpath(*parts)
    # Also where a link leads out.
    inside = image.resolve().is_relative_to(folder.resolve())
    if ".." in parts or len(parts) < 3 or not inside:
        raise ClipguardError(f"{RECORD} names an image outside its folder, {path!r}: do not use it")
    return image


def poisoned_by(record: Record, clean: ImageSet) -> tuple[ImageSet, PoisonTruth]:
    """Return `clean` as the attack changed it, and the truth.

    Samples that keep their label are poison where all do (clean-label) or where that is the target, else
    cover.

    Raises:
        ClipguardError: `clean` is not the set that the attack was made from, in its order.
    """
    rows, labels, original = record.train.columns
    _check_same(record.train, clean, "training")
    kept = labels == original
    targets = np.unique(labels if kept.all() else labels[~kept])
    cover = kept & (labels != targets[0]) if len(targets) == 1 else kept
    changed = rebuilt(clean, rows, _pixels(record.train, clean), labels)
    target = int(targets[0]) if len(targets) == 1 else None
    return changed, truth_of(clean, rows[~cover], "backdoorbench", target, rows[cover])


def triggered_by(record: Record, clean: ImageSet) -> ImageSet:
    """Return the test images with the trigger and their true labels; those without one stay as they are.

    Raises:
        ClipguardError: `clean` is not the set that the attack was made from, in its order.
    """
    _check_same(record.test, clean, "test")
    rows, _, original = record.test.columns
    return rebuilt(clean, rows, _pixels(record.test, clean), original)


def _check_same(changes: Changes, clean: ImageSet, kind: str) -> None:
    rows, _, original = changes.columns
    inside = len(clean) == changes.n and np.isin(rows, np.arange(changes.n)).all()
    if not inside or not np.array_equal(clean.labels[rows], original):
        raise ClipguardError(
            f"the {kind} set is not the one that {RECORD} was made from ({changes.n} images): "
            "give that one, in the same order"
        )


def _pixels(changes: Changes, clean: ImageSet) -> Images:
    height, width = clean.images.shape[1:3]
    pixels = np.empty((len(changes.entries), height, width, 3), np.uint8)
    limits = Limits()
    contents = (_content(Path(entry.path), limits) for entry in changes.entries)
    views = (Preprocessing(size=(height, width)),)
    for place, image in enumerate(Decoder(limits).results(views, contents)):
        if not isinstance(image, Views):
            raise ClipguardError(
                f"image {changes.entries[place].path} cannot be read ({image}): make the record anew"
            )
        pixels[place] = image.images[0]
    return pixels


def _content(file: Path, limits: Limits) -> Item:
    try:
        return read_bounded(file, limits.file_bytes)
    except OSError as error:
        return Failed(fault(error))


def _plain(file: str, weights: str) -> Record:
    """Write a record's weights and return what else matters of it; runs in the process of its own.

    torch's unpickler for weights knows tensors and plain containers and refuses every other name; numpy's
    arrays and numbers are added to its list, without the type that holds objects.
    """
    import torch
    from safetensors.torch import save_file

    rebuild, scalar = np.empty(0).__reduce__()[0], np.int64(0).__reduce__()[0]
    allowed: list[Any] = [np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd")]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        allowed += [(rebuild, f"{module}._reconstruct"), (scalar, f"{module}.scalar")]
    # BackdoorBench publishes no other format. Types that are not on the list above are refused.
    with torch.serialization.safe_globals(allowed):
        record = torch.load(file, map_location="cpu", weights_only=True)  # noqa: TID251  # see above
    save_file({name: value.clone().contiguous() for name, value in record["model"].items()}, weights)
    height, width = (int(side) for side in record["img_size"][:2])
    return Record(
        net=str(record.get("model_name", ""))[:NAME],
        clean_data=str(record.get("clean_data", ""))[:NAME],
        num_classes=int(record["num_classes"]),
        size=(height, width),
        train=_changes(record["bd_train"]),
        test=_changes(record["bd_test"]),
    )


def _changes(state: Mapping[str, Any]) -> Changes:
    changed = []
    for row, entry in state["bd_data_container"]["data_dict"].items():
        label, original = entry["other_info"]
        changed.append(Change(int(row), int(label), int(original), str(entry["path"])))
    return Changes(len(state["poison_indicator"]), sorted(changed))


def _main(file: str, weights: str) -> int:
    """Return the exit code of the process that reads a record: its one line of output is JSON."""
    try:
        sys.stdout.write(msgspec.json.encode(_plain(file, weights)).decode())
    except Exception as error:  # Whatever a hostile file brings about is one line for the process that asked.
        name = re.search(r"GLOBAL (\S+)", str(error))
        why = f"it holds {name[1]}, which is not read" if name else type(error).__name__
        sys.stderr.write(f"{why}: only plain data, arrays and tensors are\n")
        return 1
    return 0


def _bound_memory() -> None:
    """Bound the memory of this process, where the system can."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))


if __name__ == "__main__":
    _bound_memory()
    sys.exit(_main(*sys.argv[1:]))
