"""What is minimised. Importing the package registers its parts."""

from ipiqa.tasks import image2prompt, losses, quality_regression

__all__ = ["image2prompt", "losses", "quality_regression"]
