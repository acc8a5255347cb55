"""Published databases, and tables of one's own. Importing the package registers them."""

from ipiqa.datasets.databases import own, published

__all__ = ["own", "published"]
