"""Where images come from: folders, Parquet, arrays, data set objects; nothing is decoded here."""

from clipguard.sources.listing import Failed, Item
from clipguard.sources.names import Classes
from clipguard.sources.source import ImageSource

__all__ = ["Classes", "Failed", "ImageSource", "Item"]
