"""IP-IQA: train, evaluate and run models that score AI-generated images against their prompts."""

import importlib
from typing import Any

__version__ = "0.1.0"

# Heavy imports (torch, open_clip) happen on use, so that `ipiqa --help` answers at once.
_PUBLIC = {
    "load": "ipiqa.scoring.loading",
    "build_model": "ipiqa.build",
    "tokenize": "ipiqa.prompts",
    "load_config": "ipiqa.config.loading",
    "list_registered": "ipiqa.config.loading",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'ipiqa' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
