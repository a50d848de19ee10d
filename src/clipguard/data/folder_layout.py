"""What the sub-folders of an image folder are, classes, splits or neither; what is left out, by reason."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from clipguard.data.labels import in_order
from clipguard.errors import ClipguardError
from clipguard.safety.limits import Limits

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

NOT_READ: Final = ", a format that is not read"
NO_SUFFIX: Final = "no suffix"


def skip(skipped: Counter[str], reason: str, count: int = 1) -> None:
    """Count files that are left out; of very many reasons, the later ones together."""
    if count:
        skipped[reason if reason in skipped or len(skipped) < MOST_REASONS else "other kinds of files"] += (
            count
        )


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


def unread_images(skipped: Mapping[str, int]) -> int:
    """Return how many of the files that were left out are images, or may be some: those without a suffix."""
    return sum(count for reason, count in skipped.items() if reason == NO_SUFFIX or reason.endswith(NOT_READ))


def below(folder: str | Path, skipped: Counter[str]) -> Iterator[os.DirEntry[str]]:
    """Return everything below `folder` that is no folder; what is hidden, masks and links are counted.

    By a list of folders yet to read: `os.walk` would recurse, and thousands of nested folders stop that.
    """
    waiting = [os.fspath(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    skip(skipped, "hidden")
                elif entry.is_dir(follow_symlinks=False):
                    if (name := entry.name.lower()) in MASKS | OF_THE_SYSTEM:
                        skip(skipped, f"in a folder called {name}", _files_in(entry.path))
                    else:
                        waiting.append(entry.path)
                elif entry.is_symlink() and os.path.isdir(entry.path):
                    skip(skipped, "a link to a folder")
                else:
                    yield entry


def _files_in(folder: str | Path) -> int:
    """Return how many files lie below a folder, however deep: neither by calls nor by links."""
    waiting, count = [os.fspath(folder)], 0
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    count += 1
    return count


def leaves(path: Path, inside: Path) -> bool:
    """Tell whether `path` leads out of the resolved folder `inside`, by links or otherwise."""
    return not Path(os.path.realpath(path)).is_relative_to(inside)


def class_folders(root: Path, limits: Limits, skipped: Counter[str]) -> list[str]:
    """Return the names of the class folders in the order of their labels; what lies beside them is counted.

    Raises:
        ClipguardError: splits, a folder around the classes, or a class that is a link out of the folder.
    """
    names = []
    for path in root.iterdir():
        if path.name.startswith("."):
            skip(skipped, "hidden")
        elif not path.is_dir():
            skip(skipped, "beside the class folders")
        elif path.name.lower() in OF_THE_SYSTEM or (path.name.lower() in ASIDE and _holds_other_files(path)):
            skip(skipped, f"in a folder called {path.name.lower()}", max(1, _files_in(path)))
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
    for entry in below(folder, Counter()):
        if is_image(entry.name):
            return False
        some = True
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
