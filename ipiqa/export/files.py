"""New files and folders that appear whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ipiqa.errors import ConfigError


@contextlib.contextmanager
def new(path: Path) -> Iterator[Path]:
    """Yields where to write a file or folder; with what lies beside it, it takes its place when the block ends well.

    ConfigError where the place is taken; an empty folder takes none.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ConfigError(f"OUT: '{path}' is there already. Remove it, or choose another name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name[:100]}.", dir=path.parent) as folder:
        yield Path(folder) / path.name
        if path.is_dir():
            path.rmdir()
        for item in sorted(Path(folder).iterdir(), reverse=True):  # x.onnx.data before x.onnx
            os.replace(item, path.parent / item.name)
