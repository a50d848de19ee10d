"""Which columns of a table hold images, labels and groups: one rule for every kind of source that has any."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from clipguard.errors import ClipguardError

Role = Literal["image", "label", "group"]

USUAL: Final[dict[Role, tuple[str, ...]]] = {
    "image": (
        *("image", "img", "images", "picture", "photo"),
        *("file_name", "filename", "file", "path", "image_path", "filepath"),
    ),
    "label": (
        *("label", "labels", "fine_label", "target", "targets"),
        *("class", "classes", "category", "class_name", "label_name"),
    ),
    "group": (),
}
"""What columns are usually called. The first name goes before all others; of the rest, one alone counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The names of columns (arrays of an .npz file, fields of a .json label) as the user gives them.

    Attributes:
        image: holds the images, or their paths.
        label: holds the labels.
        group: samples with equal values are never apart in cross-validation: copies, frames of a video.
    """

    image: str | None = None
    label: str | None = None
    group: str | None = None

    def given(self) -> list[str]:
        """Return the options that were given, as typed."""
        values = {"image": self.image, "label": self.label, "group": self.group}
        return [f"--{role}-column" for role, value in values.items() if value is not None]


NO_COLUMNS: Final = Columns()
"""Nothing was given: the usual names count."""


def column_of(role: Role, columns: Columns, there: Sequence[str], location: str) -> str:
    """Return the column of a role: the one given, else the one usual name among those that are there.

    Raises:
        ClipguardError: it is not there, or it cannot be told which one it is.
    """
    given: str | None = getattr(columns, role)
    listed = ", ".join(map(str, there))[:200] or "none"
    if given is not None:
        if given not in there:
            raise ClipguardError(f"{location} lacks the column {given!r} of --{role}-column: it has {listed}")
        return given
    usual = USUAL[role]
    matching = [name for name in usual if name in there]
    if not matching:
        raise ClipguardError(
            f"{location} lacks the column {usual[0]!r}: it has {listed}; say which with --{role}-column"
        )
    if len(matching) > 1 and matching[0] != usual[0]:
        raise ClipguardError(
            f"{location} has several columns for a {role}, {', '.join(matching)}: "
            f"choose one with --{role}-column"
        )
    return matching[0]


def group_column(columns: Columns, there: Sequence[str], location: str) -> str | None:
    """Return the column of groups, if one is given.

    Raises:
        ClipguardError: it is not there.
    """
    return None if columns.group is None else column_of("group", columns, there, location)


def no_columns(columns: Columns, location: str) -> None:
    """Refuse columns for a source that has none.

    Raises:
        ClipguardError: at least one was given.
    """
    if given := columns.given():
        raise ClipguardError(f"{location} has no columns: leave out {', '.join(given)}")
