"""What the decoding processes and their parent say to each other: lengths and plain bytes."""

import struct
from typing import Final

from clipguard.data.decode.pixels import Wanted

WANTED: Final[tuple[Wanted, ...]] = ("pixels", "size")
REQUEST: Final = struct.Struct("<BI")
"""Which of `WANTED`, and of how many images; each follows behind its `LENGTH`."""
LENGTH: Final = struct.Struct("<Q")
REPLY: Final = struct.Struct("<BII")
"""One of the kinds below; height and width, or the length of a reason and nothing; then the bytes."""
PIXELS, SIZE, REASON = range(3)
"""The first two are the places of what is wanted in `WANTED`."""
