"""Hostile bytes -> RGB pixels, or a row in the list of unreadable images, in sandboxed workers."""

from clipguard.data.decode.decoder import Decoder
from clipguard.data.decode.pixels import UnreadableImage, decode
from clipguard.data.decode.reading import (
    Sizes,
    check_readable,
    common_size,
    decode_rows,
    read_images,
    thumbnail,
)
from clipguard.data.listing import Unreadable

__all__ = [
    "Decoder",
    "Sizes",
    "Unreadable",
    "UnreadableImage",
    "check_readable",
    "common_size",
    "decode",
    "decode_rows",
    "read_images",
    "thumbnail",
]
