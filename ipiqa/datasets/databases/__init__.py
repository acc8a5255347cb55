"""Published databases, and tables of one's own. Importing the package registers them."""

from ipiqa.datasets.databases import (
    agiqa,
    aigciqa2023,
    aigiqa20k,
    avt_ai_images,
    evalmuse40k,
    genai_bench,
    own,
    pku_aigiqa4k,
)

__all__ = ["agiqa", "aigciqa2023", "aigiqa20k", "avt_ai_images", "evalmuse40k", "genai_bench", "own", "pku_aigiqa4k"]
