"""Data sets by name: CIFAR-10, CIFAR-100, GTSRB, Tiny-ImageNet, from a folder or, if allowed, the network.

A local folder may hold `NAME/train.parquet` and `NAME/test.parquet`, shards as the Hugging Face Hub has
them (`NAME/data/train-00000-of-00001.parquet`), image folders `NAME/train` and `NAME/test`, or the archives
that the authors publish. Those are fetched by torchvision's downloader, which checks their MD5 sums:
torchvision's own for GTSRB, for CIFAR the ones on the authors' page, for Tiny-ImageNet the sum in common
use. CIFAR comes in its binary version: the one that torchvision takes is a pickle. Nothing is unpacked to
disk; an archive's members are read where they are.
"""

import csv
import io
import os
import re
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Int64, UInt8

from clipguard.data.class_names import GTSRB_NAMES
from clipguard.data.source import ImageSource
from clipguard.data.wordnet import short_names
from clipguard.errors import ClipguardError, reason_of
from clipguard.safety.network import answers

Part = Literal["train", "test"]
_CIFAR = "https://www.cs.toronto.edu/~kriz"
_SIGNS = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370"


@dataclass(frozen=True, slots=True)
class Archive:
    """A file as its authors publish it."""

    url: str
    md5: str

    @property
    def file(self) -> str:
        """The file's name."""
        return self.url.rsplit("/", 1)[1]


@dataclass(frozen=True, slots=True)
class Members:
    """Images in a zip archive, in the form of a data set object: pairs of undecoded bytes and label."""

    archive: Path
    names: tuple[str, ...]
    targets: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        """Return n."""
        return len(self.names)

    def __getitem__(self, row: int) -> tuple[bytes, int]:
        """Return the bytes of an image and its label."""
        return _opened(self.archive).read(self.names[row]), self.targets[row]


@dataclass(frozen=True, slots=True)
class NamedSet:
    """What is known by one name.

    Attributes:
        archives: files of each part.
        read: paths of a part's files and the part -> what `ImageSource.open` takes, and the class names.
        names: class names for a local folder that has none, or only numbers; None keeps its own.
    """

    archives: dict[Part, tuple[Archive, ...]]
    read: Callable[[Sequence[Path], Part], tuple[Any, tuple[str, ...]]]
    names: tuple[str, ...] | None = None


def open_named(
    name: str,
    part: Part,
    folder: Path,
    *,
    download: bool = False,
    rows: tuple[int, int] | None = None,
    classes: Sequence[str] | None = None,
) -> ImageSource:
    """Return one part of a data set that is known by name.

    Args:
        name: one of `NAMED`.
        part: `train` or `test`.
        folder: holds a folder `name`, or gets one.
        download: fetch what is missing.
        rows: first and one past the last row to keep.
        classes: names in place of the data set's own.

    Raises:
        ClipguardError: unknown name, or it is not there and is not to be, or cannot be, downloaded.
    """
    if name not in NAMED:
        raise ClipguardError(
            f"unknown data set {name!r}: choose one of {', '.join(NAMED)}, or give its files"
        )
    known, home = NAMED[name], folder / name
    archives = known.archives[part]
    missing = [archive for archive in archives if not (home / archive.file).is_file()]
    local = next((path for path in (home / f"{part}.parquet", home / part) if path.exists()), None)
    if local is None and len(missing) == len(archives):
        local = _shards(home, part)
    if local is not None:
        return ImageSource.open(local, classes=classes or known.names, rows=rows)
    if missing and not download:
        hosts = missing[0].url.split("/")[2]
        raise ClipguardError(
            f"data set {name} is not in {home}: put {part}.parquet, a folder {part} of class folders or "
            f"{missing[0].file} there, name another folder as data, or set download to fetch it from "
            f"{hosts}"
        )
    files = [_fetched(archive, home, name) for archive in archives]
    try:
        what, names = known.read(files, part)
    except (OSError, ValueError, KeyError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise ClipguardError(f"{files[0]} cannot be read ({reason_of(error)}): delete it") from error
    return replace(ImageSource.open(what, classes=classes or names, rows=rows), location=f"{name} ({part})")


def data_folder() -> Path:
    """Return where data sets known by name are looked for by default."""
    return Path(os.environ.get("CLIPGUARD_DATA", "~/.cache/clipguard/data")).expanduser()


def _shards(home: Path, part: Part) -> Path | None:
    """Return the pattern of a part's shards as the Hub lays them out, in `home` or in one folder inside it.

    Raises:
        ClipguardError: several folders hold such shards.
    """
    shard = re.compile(r"(train|test|validation|valid)-00000-of-([0-9]{5})\.parquet")
    shards = [
        (path, match)
        for path in sorted((*home.glob("*"), *home.glob("*/*")))
        if (match := shard.fullmatch(path.name))
    ]
    if len(folders := sorted({str(path.parent) for path, _ in shards})) > 1:
        raise ClipguardError(
            f"{home} holds shards in several folders, {folders[0]} and {folders[1]}: keep one"
        )
    for split in ("train",) if part == "train" else ("test", "validation", "valid"):
        for path, match in shards:
            if match[1] == split and int(match[2]):
                last = int(match[2]) - 1
                return path.with_name(f"{split}-{{00000..{last:05d}}}-of-{match[2]}.parquet")
    return None


def _fetched(archive: Archive, home: Path, name: str) -> Path:
    """Return the archive's path, downloaded if needed; a local one is checked, too.

    Raises:
        ClipguardError: no network, or bytes that are not the published ones.
    """
    from torchvision.datasets.utils import check_integrity, download_url

    path = home / archive.file
    if check_integrity(path, archive.md5):
        return path
    if path.exists():
        raise ClipguardError(f"{path} is not the file with MD5 {archive.md5}: delete it and run again")
    if not answers(archive.url):
        host = archive.url.split("/")[2]
        raise ClipguardError(
            f"data set {name}: {host} does not answer; copy {archive.file} into {home} from another machine, "
            f"or put train.parquet and test.parquet there, or name a folder that has them as data"
        )
    try:
        download_url(archive.url, str(home), md5=archive.md5)
    except (OSError, RuntimeError) as error:
        path.unlink(missing_ok=True)
        raise ClipguardError(f"{archive.url} cannot be downloaded: {reason_of(error)}; try again") from error
    return path


def _cifar(
    files: Sequence[Path],
    part: Part,
    *,
    train: Sequence[str],
    test: Sequence[str],
    names: str,
    labels: int = 1,
) -> tuple[Any, tuple[str, ...]]:
    """Return images and labels of CIFAR's binary version: `labels` label bytes and 3,072 pixels a record."""
    with tarfile.open(files[0], "r:gz") as archive:
        raw = b"".join(_member(archive, member) for member in (train if part == "train" else test))
        text = _member(archive, names).decode()
    records = np.frombuffer(raw, np.uint8).reshape(-1, labels + 3 * 32 * 32)
    pixels = records[:, labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    images: UInt8[np.ndarray, "n 32 32 3"] = np.ascontiguousarray(pixels)
    # CIFAR-100 puts the coarse label before the fine one.
    fine: Int64[np.ndarray, " n"] = records[:, labels - 1].astype(np.int64)
    return (images, fine), tuple(line.replace("_", " ") for line in text.split())


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    opened = archive.extractfile(name)
    if opened is None:
        raise ValueError(f"{name} is no file")
    return opened.read()


_opened = cache(zipfile.ZipFile)
"""The archive of a path, opened once: its directory alone has a hundred thousand entries."""


def _gtsrb(files: Sequence[Path], part: Part) -> tuple[Any, tuple[str, ...]]:
    if part == "train":
        names = sorted(name for name in _opened(files[0]).namelist() if name.endswith(".ppm"))
        labels = tuple(int(name.split("/")[-2]) for name in names)
        return Members(files[0], tuple(names), labels, GTSRB_NAMES), GTSRB_NAMES
    text = _opened(files[1]).read("GT-final_test.csv").decode()
    rows = list(csv.DictReader(io.StringIO(text), delimiter=";", skipinitialspace=True))
    names = [f"GTSRB/Final_Test/Images/{row['Filename']}" for row in rows]
    labels = tuple(int(row["ClassId"]) for row in rows)
    return Members(files[0], tuple(names), labels, GTSRB_NAMES), GTSRB_NAMES


def _tiny_imagenet(files: Sequence[Path], part: Part) -> tuple[Any, tuple[str, ...]]:
    """Return the training or the validation images; the test images have no public labels."""
    root, archive = "tiny-imagenet-200", _opened(files[0])

    def lines(name: str) -> list[list[str]]:
        return [line.split("\t") for line in archive.read(f"{root}/{name}").decode().splitlines() if line]

    ids = sorted(line[0] for line in lines("wnids.txt"))
    number = {wnid: label for label, wnid in enumerate(ids)}
    if part == "train":
        names = sorted(name for name in archive.namelist() if name.endswith(".JPEG") and "/train/" in name)
        labels = tuple(number[name.split("/")[2]] for name in names)
    else:
        rows = lines("val/val_annotations.txt")
        names = [f"{root}/val/images/{row[0]}" for row in rows]
        labels = tuple(number[row[1]] for row in rows)
    words = dict(line[:2] for line in lines("words.txt"))
    classes = short_names(ids, {wnid: words[wnid] for wnid in ids})
    return Members(files[0], tuple(names), labels, classes), classes


def _both(archive: Archive) -> dict[Part, tuple[Archive, ...]]:
    return {"train": (archive,), "test": (archive,)}


_SIGNS_TEST = (
    Archive(f"{_SIGNS}/GTSRB_Final_Test_Images.zip", "c7e4e6327067d32654124b0fe9e82185"),
    Archive(f"{_SIGNS}/GTSRB_Final_Test_GT.zip", "fe31e9c9270bbcd7b84b7f21a9d9d9e5"),
)

NAMED: Final[dict[str, NamedSet]] = {
    "cifar10": NamedSet(
        _both(Archive(f"{_CIFAR}/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530")),
        partial(
            _cifar,
            train=[f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6)],
            test=["cifar-10-batches-bin/test_batch.bin"],
            names="cifar-10-batches-bin/batches.meta.txt",
        ),
    ),
    "cifar100": NamedSet(
        _both(Archive(f"{_CIFAR}/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8")),
        partial(
            _cifar,
            train=["cifar-100-binary/train.bin"],
            test=["cifar-100-binary/test.bin"],
            names="cifar-100-binary/fine_label_names.txt",
            labels=2,
        ),
    ),
    "gtsrb": NamedSet(
        {
            "train": (Archive(f"{_SIGNS}/GTSRB-Training_fixed.zip", "513f3c79a4c5141765e10e952eaa2478"),),
            "test": _SIGNS_TEST,
        },
        _gtsrb,
        names=GTSRB_NAMES,
    ),
    "tiny-imagenet": NamedSet(
        _both(
            Archive("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de")
        ),
        _tiny_imagenet,
    ),
}
