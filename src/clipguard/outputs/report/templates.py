"""The templates of the page and its map: everything from the data is escaped on its way in."""

import re
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from clipguard.errors import one_line
from clipguard.outputs.text import duration, percent

FOLDER: Final = Path(__file__).parent

LONGEST: Final = 200
LONGEST_PATH: Final = 1000
"""Characters of a text, and of a path in the list of files, that the page shows."""

_PICTURE: Final = re.compile(r"data:image/webp;base64,[A-Za-z0-9+/]+={0,2}")


def rendered(template: str, **values: Any) -> str:
    """Return a template of this folder with its values."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "duration": duration,
        "count": "{:,}".format,
        "picture": _picture,
        "whole": _whole,
    }
    return environment.get_template(template).render(values)


def visible(value: Any) -> Any:
    """Return a text as the page may hold it: short, with every control and direction mark spelt out.

    It is the templates' `finalize`. Every value on its way into the page passes it before it is escaped, so
    that no place in a template can forget it.
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return shortened(value, LONGEST)


def shortened(text: str, longest: int) -> str:
    """Return a text with its middle left out where it is too long, and control marks spelt out."""
    return one_line(text if len(text) <= longest else f"{text[: longest // 2]} … {text[-longest // 2 :]}")


def _whole(text: str) -> Markup:
    """Return a path for the list of files: longer than `visible` leaves it, else the same, and escaped."""
    return Markup("{}").format(shortened(text, LONGEST_PATH))


def _picture(uri: str) -> Markup:
    # The one text that skips `visible`, so it must prove that it is a picture.
    return Markup(uri) if _PICTURE.fullmatch(uri) else Markup("data:,")
