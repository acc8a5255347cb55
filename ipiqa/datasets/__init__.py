"""Annotated images: tables, checks, splits, decoded-image cache and loaders. Importing it registers the datasets."""

from ipiqa.datasets import databases, preferences
from ipiqa.datasets.image_folder import ImageFolder
from ipiqa.datasets.shards import Shards

__all__ = ["ImageFolder", "Shards", "Source", "databases", "preferences"]

# A dataset: images of a table whose rows are known in advance, or a stream without a table. `streamed` tells which.
Source = ImageFolder | Shards
