"""Encoders, fusions, heads and the models made of them. Importing the package registers its parts."""

from ipiqa.models import baselines, distribution, fusion, heads, interaction, ipiqa, kernel_ridge, levels, towers

__all__ = ["baselines", "distribution", "fusion", "heads", "interaction", "ipiqa", "kernel_ridge", "levels", "towers"]
