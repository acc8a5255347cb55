"""Other people's metrics by name, for `ipiqa.load`, and what is known of them. Importing the package registers them."""

import json
from pathlib import Path

from ipiqa.scorers import clip, table

__all__ = ["FACTS", "clip", "table"]

# name -> heading -> words, to be read before their numbers are
FACTS: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "facts.json").read_text(encoding="utf-8"))
