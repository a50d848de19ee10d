"""The worker that decodes: it may crash, hang or swell, and nothing is lost with it but one image."""

import json
import struct
from collections.abc import Iterator
from typing import Final

import numpy as np

from clipguard.data.decode.pixels import Request, decoded
from clipguard.safety.limits import Limits
from clipguard.safety.sandbox import FIRST_KIND, Frame, serve

PIXELS, SIZE, REASON = range(FIRST_KIND, FIRST_KIND + 3)
"""Of a request: an image. Of an answer: pixels, behind their size; height and width; why there is neither."""
KINDS: Final[dict[Request, int]] = {"pixels": PIXELS, "size": SIZE}
SIDES: Final = struct.Struct("<II")


def _answer(request: list[Frame], limits: Limits) -> Iterator[Frame]:
    for kind, item in request:
        result = decoded("size" if kind == SIZE else "pixels", bytes(item), limits)
        if isinstance(result, str):
            yield REASON, result.encode("utf-8", "backslashreplace")
        elif isinstance(result, tuple):
            yield SIZE, SIDES.pack(*result)
        else:
            yield SIZE, SIDES.pack(*result.shape[:2])
            yield PIXELS, np.ascontiguousarray(result).data.cast("B")


def main(fields: str) -> None:
    """Serve until the parent goes; `fields` are those of `Limits` as JSON."""
    serve(Limits(**json.loads(fields)), _answer)
