"""What a dataset offers: what all do, and then images of a table, or batches of a stream without a table."""

from collections.abc import Sequence
from typing import ClassVar, Literal, Protocol

from ipiqa.datasets.checks import Findings
from ipiqa.datasets.image_cache import ImageSource
from ipiqa.datasets.image_folder import ImageLook
from ipiqa.datasets.loaders import Loading
from ipiqa.datasets.shard_stream import ShardBatches, Tokenize
from ipiqa.datasets.table import AnnotationTable
from ipiqa.processors.image import SquashProcessor as Processor


class _Source(Protocol):
    has_scores: ClassVar[bool]  # without, it is for pre-training only

    @property
    def num_targets(self) -> int: ...
    def load(self) -> AnnotationTable: ...  # ConfigError where rows are streamed
    def check(self, processor: Processor) -> Findings: ...


class TableSource(_Source, Protocol):
    """A dataset whose rows are known in advance."""

    streamed: ClassVar[Literal[False]]

    def check(self, processor: Processor, images: ImageLook = "decode") -> Findings: ...
    def check_images(self, table: AnnotationTable, processor: Processor) -> None: ...
    def image_hashes(self, table: AnnotationTable) -> tuple[str, ...]: ...
    def open_images(self, table: AnnotationTable, hashes: Sequence[str], processor: Processor) -> ImageSource: ...


class StreamSource(_Source, Protocol):
    """A dataset whose rows come one after the other, and whose held-out part is files of its own."""

    streamed: ClassVar[Literal[True]]

    def identity(self) -> dict[str, str]: ...
    def train_batches(self, processor: Processor, tokenize: Tokenize, loading: Loading) -> ShardBatches: ...
    def val_batches(self, processor: Processor, tokenize: Tokenize, loading: Loading) -> ShardBatches: ...


Source = TableSource | StreamSource  # `streamed` tells which
