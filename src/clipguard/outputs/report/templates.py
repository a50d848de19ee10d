"""The templates of the page and its map: everything from the data is escaped on its way in."""

import re
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from clipguard.errors import one_line
from clipguard.outputs.text import duration, percent

_LONGEST: Final = 200
_PNG: Final = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")


def rendered(template: str, **values: Any) -> str:
    """Return a template of this folder with its values."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
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
    }
    return environment.get_template(template).render(values)


def visible(value: Any) -> Any:
    """Return a text as the page may hold it: short, with every control and direction mark spelt out.

    It is the templates' `finalize`. Every value on its way into the page passes it before it is escaped, so
    that no place in a template can forget it.
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    if len(value) > _LONGEST:
        value = f"{value[: _LONGEST // 2]} … {value[-_LONGEST // 2 :]}"
    return one_line(value)


def _picture(uri: str) -> Markup:
    # The one text that skips `visible`, so it must prove that it is a picture.
    return Markup(uri) if _PNG.fullmatch(uri) else Markup("data:,")
