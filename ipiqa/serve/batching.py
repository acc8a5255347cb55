"""The pairs of requests that come at the same time, scored together by the one thread that uses the model."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from starlette.exceptions import HTTPException

from ipiqa.scoring.scorer import Scorer

T = TypeVar("T")
Waiting = tuple[Any, str, Future[np.ndarray]]  # an image as `Scorer.prepare` returns it, its prompt, scores to come

WAIT = 0.005  # seconds that a batch which is not full waits for pairs that are being decoded
LATER = {"Retry-After": "1"}


class Batcher:
    """A thread that scores pairs in the order in which they come, up to `batch_size` at once."""

    def __init__(self, scorer: Scorer, batch_size: int, most: int) -> None:
        """Takes on `most` pairs at a time."""
        self.scorer, self.batch_size, self.most = scorer, batch_size, most
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ipiqa-scoring")
        self._pairs: deque[Waiting] = deque()
        self._admitted = 0

    @contextlib.contextmanager
    def admitting(self, count: int) -> Iterator[None]:
        """Takes on pairs for the length of a block, in which they are decoded and scored; else refuses with 429.

        Blocks are entered and left in one thread.
        """
        if self._admitted + count > self.most:
            problem = f"queue: {self._admitted} pairs wait, and the limit is {self.most}. Try again later."
            raise HTTPException(429, problem, LATER)
        self._admitted += count
        try:
            yield
        finally:
            self._admitted -= count

    def submit(self, image: Any, prompt: str) -> Future[np.ndarray]:
        """Returns the scores to come, (F, T), of one pair; once cancelled it is not scored any more."""
        scores: Future[np.ndarray] = Future()
        self._pairs.append((image, prompt, scores))
        self._thread.submit(self._score_batch)  # once a pair: those that find all pairs scored return at once
        return scores

    def call(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Returns what a function that uses the model will return; it is called between two batches."""
        return self._thread.submit(function, *arguments)

    def close(self) -> None:
        """Scores what waits, then ends the thread."""
        self._thread.shutdown()

    def _score_batch(self) -> None:
        end = time.monotonic() + WAIT
        while 0 < len(self._pairs) < min(self.batch_size, self._admitted) and time.monotonic() < end:
            time.sleep(WAIT / 10)
        batch: list[Waiting] = []
        while self._pairs and len(batch) < self.batch_size:
            pair = self._pairs.popleft()
            if pair[2].set_running_or_notify_cancel():
                batch.append(pair)
        if batch:
            self._score(batch)

    def _score(self, batch: list[Waiting]) -> None:
        """Scores pairs together; where that fails each alone, so that only those that cannot be scored fail."""
        images, prompts, futures = zip(*batch, strict=True)
        try:
            scores = self.scorer.outputs(images, prompts)  # (F, B, T)
            results = [scores[:, i] for i in range(len(batch))]
        except Exception as error:
            if len(batch) == 1:
                futures[0].set_exception(error)
            else:
                for pair in batch:
                    self._score([pair])
            return
        for future, result in zip(futures, results, strict=True):
            future.set_result(result)
