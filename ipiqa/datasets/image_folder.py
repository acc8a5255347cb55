"""A folder of images: the settings and steps that all datasets share which have one."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from ipiqa.datasets.checks import ImageReader, check_images
from ipiqa.datasets.image_cache import ImageSource, open_images
from ipiqa.datasets.table import AnnotationTable
from ipiqa.errors import ConfigError


def expand_path(path: str) -> Path:
    """Returns a path of the settings, `~` expanded where it names a folder."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (Path.expanduser fails where there is no such user)


@dataclass(frozen=True, kw_only=True)
class ImageFolder(ABC):
    """Images in a folder, and what is known of them.

    Attributes:
        images: folder of the images.
        image_cache: whether to keep decoded images in a file, for all epochs, folds and runs.
        cache_dir: folder of those files.
        cache_limit_gb: a larger cache is not built; images are then decoded each time.
    """

    images: str
    image_cache: bool = True
    cache_dir: str = "cache/images"
    cache_limit_gb: float = 16.0

    def __post_init__(self) -> None:
        if not 0 <= self.cache_limit_gb < math.inf:
            raise ConfigError(f"dataset.cache_limit_gb: {self.cache_limit_gb:g} is not a size. Give one such as 16.")

    @abstractmethod
    def load(self) -> AnnotationTable:
        """Returns the table; the images are not touched.

        Raises:
            DataError: a file is missing or something in it cannot be right.
        """

    @property
    def hint(self) -> str:
        """Where the files come from, for messages."""
        return "Check the path."

    @property
    def num_targets(self) -> int:
        """Number of scores of an image; 0 where only prompts are known."""
        return 0

    def check_images(self, table: AnnotationTable, processor: ImageReader, *, full: bool = False) -> None:
        """Raises when an image is missing or cannot be used; see `checks.check_images`."""
        check_images(table, processor, full=full, hint=self.hint)

    def open_images(self, table: AnnotationTable, processor: ImageReader) -> ImageSource:
        """Returns the images of the table by row number, from the cache (built now if need be) or decoded each time."""
        limit_gb = self.cache_limit_gb if self.image_cache else 0.0
        return open_images(table, processor, cache_dir=expand_path(self.cache_dir), limit_gb=limit_gb)
