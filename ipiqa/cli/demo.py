"""`ipiqa demo-data` and `ipiqa demo-encoders`: the parts of `make demo` that come before training."""

from __future__ import annotations

import argparse
from typing import Any


def add_commands(commands: Any) -> None:
    """Adds the demo commands; filled in with the demo dataset."""


