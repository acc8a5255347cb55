"""Where in the image and on which words of the prompt a score hangs."""

from ipiqa.explain.explanation import Explanation, HeatMap, Words, explain

__all__ = ["Explanation", "HeatMap", "Words", "explain"]
