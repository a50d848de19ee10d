"""What the sub-folders of an image folder are, classes, splits or neither; what is left out, by reason."""

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from clipguard.data.labels import in_order
from clipguard.errors import ClipguardError
from clipguard.safety.limits import Limits, opened_regular

# Formats that run an interpreter (EPS, PDF, WMF) stay out: the files are untrusted.
IMAGE_SUFFIXES: Final = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif"}
)
UNREAD_IMAGES: Final = frozenset({".heic", ".heif", ".svg", ".eps", ".pdf", ".psd", ".dcm", ".jxl", ".exr"})
"""Images in formats that are not read: what is lost with them is data."""

SPLIT: Final = re.compile(
    r"(?:images?[ _.-]?)?"
    r"(?:train|training|trainval|val|valid|validation|dev|eval|evaluation|test|testing|holdout)"
    r"(?:[ _.-]?(?:set|split|images?|imgs|data|[12]\d{3}))?",
    re.IGNORECASE,
)
OF_THE_SYSTEM: Final = frozenset(
    {"__macosx", "lost+found", "$recycle.bin", "system volume information", "@eadir", "__pycache__"}
)
ASIDE: Final = frozenset(
    {"annotation", "annotations", "anno", "annos", "log", "logs", "label", "labels", "meta", "metadata"}
    | {"doc", "docs", "script", "scripts", "mask", "masks", "checkpoint", "checkpoints", "runs", "wandb"}
)
"""What lies beside class folders; without any image in it, such a folder is no class."""

MASKS: Final = frozenset({"mask", "masks", "annotation", "annotations", "ground_truth", "segmentation"})
"""Sub-folders of a class whose images are no samples of it."""

MOST_REASONS: Final = 24

MOST_COUNTED: Final = 1_000_000
"""Files and folders below what is left out that are looked at: a link may lead anywhere."""

NOT_READ: Final = ", a format that is not read"
NO_SUFFIX: Final = "no suffix"
AN_IMAGE: Final = ", an image by its name"
"""Ends the reason of what other readers of image folders, such as torchvision's, do read."""

HIDDEN: Final = "hidden"
_IN_FOLDER: Final = "in a folder called {}"
_LINKED: Final = "a link to a folder"
_APPLE_DOUBLE: Final = b"\x00\x05\x16\x07"
"""Beginning of the `._name` that macOS puts beside each `name`: no reader takes it for an image."""


def skip(skipped: Counter[str], reason: str, count: int = 1) -> None:
    """Count files that are left out; of very many reasons, the later ones together, but for images."""
    if count:
        named = reason in skipped or len(skipped) < MOST_REASONS or _may_be_images(reason)
        skipped[reason if named else "other kinds of files"] += count


def is_image(name: str) -> bool:
    """Tell whether a file's name is that of an image in a format that is read."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def reason_of_name(name: str) -> str:
    """Return why a file is left out, by its name."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix in UNREAD_IMAGES:
        return f"{suffix}{NOT_READ}"
    if not suffix:
        return NO_SUFFIX
    return f"{suffix}, no image" if re.fullmatch(r"\.[a-z0-9_]{1,12}", suffix) else "another suffix, no image"


def without_images(skipped: Mapping[str, int]) -> dict[str, int]:
    """Return the counts where a table names the images: whoever goes by it reads no others."""
    merged = Counter[str]()
    for reason, count in skipped.items():
        merged[reason.removesuffix(AN_IMAGE)] += count
    return dict(merged)


def _may_be_images(reason: str) -> bool:
    return reason == NO_SUFFIX or reason.endswith((NOT_READ, AN_IMAGE))


def unread_images(skipped: Mapping[str, int]) -> int:
    """Return how many of the files that were left out are images, or may be some: those without a suffix."""
    return sum(count for reason, count in skipped.items() if _may_be_images(reason))


class LeftOut(Counter[str]):
    """Files that are left out, by reason; `looked_at` counts what lies below folders that are not entered."""

    looked_at = 0


def below(folder: str | Path, skipped: LeftOut) -> Iterator[os.DirEntry[str]]:
    """Return everything below `folder` that is no folder; what is hidden, masks and links are counted."""
    for entry, left_out in _entries(folder):
        if not left_out:
            yield entry
        elif not entry.name.startswith("."):
            linked = entry.is_symlink()
            _leave_out(skipped, entry.path, _LINKED if linked else _IN_FOLDER.format(entry.name.lower()))
        elif _is_folder(entry):
            _leave_out(skipped, entry.path, HIDDEN)
        else:
            skip(skipped, f"{HIDDEN}{AN_IMAGE}" if _read_elsewhere(entry) else HIDDEN)


def _entries(folder: str | Path) -> Iterator[tuple[os.DirEntry[str], bool]]:
    """Return everything below `folder` but the folders that are entered, and whether it is left out.

    By a list of folders yet to read: `os.walk` would recurse, and thousands of nested folders stop that.
    """
    waiting = [os.fspath(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    yield entry, True
                elif entry.is_dir(follow_symlinks=False):
                    if entry.name.lower() in MASKS | OF_THE_SYSTEM:
                        yield entry, True
                    else:
                        waiting.append(entry.path)
                else:
                    yield entry, entry.is_symlink() and os.path.isdir(entry.path)


def _leave_out(skipped: LeftOut, folder: str, reason: str) -> None:
    """Count the images below a folder, and its other files: all as one where it is hidden or linked."""
    images, others = _counted_below(folder, skipped)
    skip(skipped, f"{reason}{AN_IMAGE}", images)
    skip(skipped, reason, 1 if reason in (HIDDEN, _LINKED) else max(others, 1 - images))


def _counted_below(folder: str, skipped: LeftOut) -> tuple[int, int]:
    """Return how many images and other files lie below a folder, however deep: by no calls, by links once.

    Nothing is opened but what macOS may have put there. After `MOST_COUNTED` files and folders in all,
    everything counts as an image, since it may be one.
    """
    waiting, known, images, others = [folder], set[tuple[int, int]](), 0, 0
    while waiting:
        # What may not be read is read by nobody else, either.
        with contextlib.suppress(OSError):
            status = os.stat(at := waiting.pop())
            if (place := (status.st_dev, status.st_ino)) in known:
                continue
            known.add(place)
            with os.scandir(at) as entries:
                for entry in entries:
                    skipped.looked_at += 1
                    if skipped.looked_at > MOST_COUNTED:
                        return MOST_COUNTED, 0
                    if _is_folder(entry):
                        waiting.append(entry.path)
                    elif _read_elsewhere(entry):
                        images += 1
                    else:
                        others += 1
    return images, others


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a folder or leads to one."""
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself
        return False


def _read_elsewhere(entry: os.DirEntry[str]) -> bool:
    """Tell whether a file that is left out here is an image to readers that go by the end of its name."""
    if not entry.name.lower().endswith(tuple(IMAGE_SUFFIXES)):
        return False
    if not entry.name.startswith("._") or entry.is_symlink():
        return True
    try:
        with opened_regular(Path(entry.path)) as opened:
            return opened.read(len(_APPLE_DOUBLE)) != _APPLE_DOUBLE
    except OSError:
        return True


def leaves(path: Path, inside: Path) -> bool:
    """Tell whether `path` leads out of the resolved folder `inside`, by links or otherwise."""
    return not Path(os.path.realpath(path)).is_relative_to(inside)


def class_folders(root: Path, limits: Limits, skipped: LeftOut) -> list[str]:
    """Return the names of the class folders in the order of their labels; what lies beside them is counted.

    Raises:
        ClipguardError: splits, a folder around the classes, or a class that is a link out of the folder.
    """
    names = []
    for path in root.iterdir():
        name = path.name.lower()
        if not path.is_dir():
            # It lies in no class, so that nobody else takes it for an image of one.
            skip(skipped, HIDDEN if name.startswith(".") else "beside the class folders")
        elif name.startswith("."):
            _leave_out(skipped, os.fspath(path), HIDDEN)
        elif name in OF_THE_SYSTEM or (name in ASIDE and _holds_other_files(path)):
            _leave_out(skipped, os.fspath(path), _IN_FOLDER.format(name))
        else:
            names.append(path.name)
    _check_splits(root, names)
    _check_depth(root, names)
    inside = Path(os.path.realpath(root))
    for name in names:
        if not limits.links and leaves(root / name, inside):
            raise ClipguardError(
                f"class folder {root / name} is a link that leads out of {root}: copy it, or allow links "
                "with --limits.links (in Python: Limits)"
            )
    return in_order(names)


def _holds_other_files(folder: Path) -> bool:
    """Tell whether files lie below a folder, and no image among them: an empty folder may be a class."""
    some = False
    for entry, left_out in _entries(folder):
        if is_image(entry.name) and not left_out:
            return False
        some |= not left_out
    return some


def _sub_folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _holds_images(folder: Path) -> bool:
    return any(is_image(path.name) for path in folder.iterdir())


def _check_splits(root: Path, names: list[str]) -> None:
    """Refuse a folder of splits: all folders are called so, or two of them, or one that holds folders alone.

    Raises:
        ClipguardError: it is one, with what to open.
    """
    splits = sorted(name for name in names if SPLIT.fullmatch(name))
    others = sorted(set(names) - set(splits))
    if not splits:
        return
    # A class may well be called train, as in CIFAR-100; then it holds images.
    only = root / splits[0]
    if len(splits) == 1 and others and (_holds_images(only) or not _sub_folders(only)):
        return
    beside = f" beside {', '.join(others[:3])}" if others else ""
    raise ClipguardError(
        f"{root} holds splits ({', '.join(splits)}){beside}, not classes: open one, such as {only}; if they "
        "are classes, rename the folders"
    )


def _check_depth(root: Path, names: list[str]) -> None:
    """Refuse a folder with one folder, as archives hold one, that holds the classes.

    Raises:
        ClipguardError: it is one, with what to open.
    """
    if len(names) != 1:
        return
    inner = _sub_folders(only := root / names[0])
    if len(inner) > 1 and not _holds_images(only):
        raise ClipguardError(f"{root} holds one folder that holds {len(inner)} folders: open {only}")
