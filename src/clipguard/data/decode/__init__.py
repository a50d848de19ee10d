"""Hostile bytes -> RGB pixels, or a row in the list of unreadable images, in sandboxed workers."""

from clipguard.data.decode.decoder import Decoder
from clipguard.data.decode.geometry import prepared
from clipguard.data.decode.pixels import UnreadableImage, decode
from clipguard.data.decode.reading import (
    ReadRow,
    check_readable,
    common_size,
    read_images,
    read_rows,
    sampled_sizes,
)
from clipguard.data.listing import Unreadable

__all__ = [
    "Decoder",
    "ReadRow",
    "Unreadable",
    "UnreadableImage",
    "check_readable",
    "common_size",
    "decode",
    "prepared",
    "read_images",
    "read_rows",
    "sampled_sizes",
]
