"""Where images come from: folders, Parquet, arrays, data set objects; nothing is decoded here."""

from clipguard.data.class_names import Classes
from clipguard.data.columns import Columns
from clipguard.data.finding import columns_of_test
from clipguard.data.listing import Failed, Item
from clipguard.data.source import ImageSource

__all__ = ["Classes", "Columns", "Failed", "ImageSource", "Item", "columns_of_test"]
