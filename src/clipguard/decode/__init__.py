"""Hostile bytes -> RGB pixels, or a row in the list of unreadable images; in processes that may die of it."""

from clipguard.decode.pixels import UnreadableImage, decode
from clipguard.decode.reading import (
    Sizes,
    check_readable,
    common_size,
    decode_rows,
    read_images,
    thumbnail,
)
from clipguard.decode.workers import Decoder, decoding
from clipguard.sources.listing import Unreadable

__all__ = [
    "Decoder",
    "Sizes",
    "Unreadable",
    "UnreadableImage",
    "check_readable",
    "common_size",
    "decode",
    "decode_rows",
    "decoding",
    "read_images",
    "thumbnail",
]
