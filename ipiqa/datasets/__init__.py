"""Annotated images: tables, checks, splits, decoded-image cache and loaders. Importing it registers the datasets."""

from ipiqa.datasets import databases, pairs, shards

__all__ = ["databases", "pairs", "shards"]
