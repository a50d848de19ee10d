"""Records of BackdoorBench as image sets: the one place that reads pickled data, in a process of its own.

A record is a folder: `attack_result.pt`, and the changed images as PNG files beside it. Nothing else of this
package imports this module but the command `convert`; `scan` and `defend` cannot reach it.
"""

import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import msgspec
import numpy as np
from jaxtyping import Int64

from clipguard.data import Failed, Item
from clipguard.data.decode import Decoder, thumbnail
from clipguard.data.listing import fault
from clipguard.errors import ClipguardError
from clipguard.lab.attacks.poisoning import rebuilt, truth_of
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.safety.limits import Limits, read_bounded
from clipguard.types import Images, ImageSet

RECORD: Final = "attack_result.pt"
MEMORY: Final = 8 << 30
"""Bytes that reading a record may take: a small file can claim a tensor of any size."""
NAME: Final = 100
"""Characters of a name in a record; what is longer is no name."""
PATIENCE: Final = 600.0
"""Seconds by the clock that reading a record may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """The samples of one set that the attack changed.

    Attributes:
        n: size of the whole set.
        rows: which samples.
        labels: what the attack labels them.
        original_labels: what they were.
        files: their images.
    """

    n: int
    rows: Int64[np.ndarray, "p"]
    labels: Int64[np.ndarray, "p"]
    original_labels: Int64[np.ndarray, "p"]
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
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
        target_mapping = np.arange(self.num_classes)
        target_mapping[self.test.original_labels] = self.test.labels
        if not np.array_equal(target_mapping[self.test.original_labels], self.test.labels):
            raise ClipguardError(f"{RECORD} sends one class to several others: it cannot be judged here")
        return target_mapping


class _Entries(msgspec.Struct):
    """Size of a set, and of each changed sample row, label, original label and path of the image."""

    n: int
    changed: list[tuple[int, int, int, str]]


class _Plain(msgspec.Struct):
    """What the process that reads a record sends of it."""

    net: str
    clean_data: str
    num_classes: int
    size: tuple[int, int]
    bd_train: _Entries
    bd_test: _Entries


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
        plain = msgspec.json.decode(process.stdout, type=_Plain)
        train, test = _changes(plain.bd_train, folder), _changes(plain.bd_test, folder)
        labels = np.concatenate([train.labels, train.original_labels, test.labels, test.original_labels])
        if not np.isin(labels, np.arange(plain.num_classes)).all():
            raise ValueError("a label is no class")
    except (ValueError, OverflowError) as error:
        raise ClipguardError(f"{file} is no record that can be read: make it anew") from error
    return Record(
        num_classes=plain.num_classes,
        size=plain.size,
        train=train,
        test=test,
        net=plain.net,
        clean_data=plain.clean_data,
    )


def _changes(entries: _Entries, folder: Path) -> Changes:
    columns = np.array([entry[:3] for entry in entries.changed], dtype=np.int64).reshape(-1, 3)
    return Changes(
        n=entries.n,
        rows=columns[:, 0],
        labels=columns[:, 1],
        original_labels=columns[:, 2],
        files=tuple(_beside(entry[3], folder) for entry in entries.changed),
    )


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
    changes = record.train
    _check_same(changes, clean, "training")
    kept = changes.labels == changes.original_labels
    targets = np.unique(changes.labels if kept.all() else changes.labels[~kept])
    cover = kept & (changes.labels != targets[0]) if len(targets) == 1 else kept
    changed = rebuilt(clean, changes.rows, _pixels(changes, clean), changes.labels)
    target = int(targets[0]) if len(targets) == 1 else None
    truth = truth_of(clean, changes.rows[~cover], "backdoorbench", target, changes.rows[cover])
    return changed, truth


def triggered_by(record: Record, clean: ImageSet) -> ImageSet:
    """Return the test images with the trigger and their true labels; those without one stay as they are.

    Raises:
        ClipguardError: `clean` is not the set that the attack was made from, in its order.
    """
    _check_same(record.test, clean, "test")
    return rebuilt(clean, record.test.rows, _pixels(record.test, clean), record.test.original_labels)


def _check_same(changes: Changes, clean: ImageSet, kind: str) -> None:
    inside = len(clean) == changes.n and np.isin(changes.rows, np.arange(changes.n)).all()
    if not inside or not np.array_equal(clean.labels[changes.rows], changes.original_labels):
        raise ClipguardError(
            f"the {kind} set is not the one that {RECORD} was made from ({changes.n} images): "
            "give that one, in the same order"
        )


def _pixels(changes: Changes, clean: ImageSet) -> Images:
    height, width = clean.images.shape[1:3]
    pixels = np.empty((len(changes.files), height, width, 3), np.uint8)
    limits = Limits()
    contents = (_content(file, limits) for file in changes.files)
    for place, image in enumerate(Decoder(limits).results("pixels", contents)):
        if not isinstance(image, np.ndarray):
            raise ClipguardError(
                f"image {changes.files[place]} cannot be read ({image}): make the record anew"
            )
        pixels[place] = thumbnail(image, (height, width))
    return pixels


def _content(file: Path, limits: Limits) -> Item:
    try:
        return read_bounded(file, limits.file_bytes)
    except OSError as error:
        return Failed(fault(error))


def _plain(file: str, weights: str) -> _Plain:
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
    with torch.serialization.safe_globals(allowed):
        record = torch.load(file, map_location="cpu", weights_only=True)  # noqa: TID251  # the one place, by a list
    save_file({name: value.clone().contiguous() for name, value in record["model"].items()}, weights)
    height, width = (int(side) for side in record["img_size"][:2])
    return _Plain(
        net=str(record.get("model_name", ""))[:NAME],
        clean_data=str(record.get("clean_data", ""))[:NAME],
        num_classes=int(record["num_classes"]),
        size=(height, width),
        bd_train=_entries(record["bd_train"]),
        bd_test=_entries(record["bd_test"]),
    )


def _entries(state: Mapping[str, Any]) -> _Entries:
    changed = []
    for row, entry in state["bd_data_container"]["data_dict"].items():
        label, original = entry["other_info"]
        changed.append((int(row), int(label), int(original), str(entry["path"])))
    return _Entries(len(state["poison_indicator"]), sorted(changed))


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
