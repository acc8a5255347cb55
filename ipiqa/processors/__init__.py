"""Image processors: from a file to the tensor a model takes. Importing it registers them."""

from ipiqa.processors import image, views

__all__ = ["image", "views"]
