"""Encoders, fusions, heads and the models made of them. Importing the package registers its parts."""

from ipiqa.models import baselines, fusion, heads, ipiqa, kernel_ridge, towers

__all__ = ["baselines", "fusion", "heads", "ipiqa", "kernel_ridge", "towers"]
