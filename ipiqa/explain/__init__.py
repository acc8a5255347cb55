"""Where in the image and on which words of the prompt a score hangs."""

from ipiqa.explain.explanation import Explanation, explain
from ipiqa.explain.maps import HeatMap
from ipiqa.explain.words import Words

__all__ = ["Explanation", "HeatMap", "Words", "explain"]
