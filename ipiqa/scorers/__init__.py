"""Other people's metrics by name, for `ipiqa.load`. Importing the package registers them."""

from ipiqa.scorers import clip

__all__ = ["clip"]
