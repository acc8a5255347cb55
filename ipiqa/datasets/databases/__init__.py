"""Published databases, and tables of one's own. Importing the package registers them."""

from ipiqa.datasets.databases import annotated, published

__all__ = ["annotated", "published"]
