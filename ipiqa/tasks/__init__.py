"""What is minimised. Importing the package registers its parts."""

from ipiqa.tasks import quality_regression

__all__ = ["quality_regression"]
