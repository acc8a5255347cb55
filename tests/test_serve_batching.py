"""The thread that scores the pairs of all requests."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest
from serving import WidthScorer
from starlette.exceptions import HTTPException

from ipiqa.serve import batching
from ipiqa.serve.batching import Batcher


@pytest.fixture
def scorer() -> WidthScorer:
    return WidthScorer()


@contextlib.contextmanager
def batcher(scorer: WidthScorer, batch_size: int = 4, most: int = 100) -> Iterator[Batcher]:
    made = Batcher(scorer, batch_size, most)
    try:
        yield made
    finally:
        scorer.may_go_on.set()
        made.close()


def test_pairs_that_wait_are_scored_together_in_order(scorer: WidthScorer) -> None:
    with batcher(scorer) as work, work.admitting(11):
        first = work.submit(0, "wait")
        assert scorer.entered.wait(10)
        others = [work.submit(i, str(i)) for i in range(10)]
        scorer.may_go_on.set()
        assert first.result(10).tolist() == [[-1, -1], [1, 1]]
        assert [future.result(10)[0, 0] + 1 for future in others] == [*range(10)]
    assert [len(batch) for batch in scorer.batches] == [1, 4, 4, 2]
    assert [prompt for batch in scorer.batches for prompt in batch] == ["wait", *map(str, range(10))]


def test_a_batch_waits_for_pairs_that_are_decoded_and_for_nothing_else(
    scorer: WidthScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "WAIT", 20)
    with batcher(scorer) as work:
        start = time.monotonic()
        with work.admitting(1):
            work.submit(1, "alone").result(10)
        with work.admitting(2):
            first = work.submit(1, "first")
            time.sleep(0.1)
            work.submit(2, "second").result(10)
            assert first.done()
        assert time.monotonic() - start < 10
    assert scorer.batches == [["alone"], ["first", "second"]]


def test_a_pair_that_cannot_be_scored_hurts_no_other(scorer: WidthScorer) -> None:
    with batcher(scorer) as work, work.admitting(5):
        work.submit(0, "wait")
        scorer.entered.wait(10)
        futures = [work.submit(i, "fail" if i == 1 else "good") for i in range(4)]
        scorer.may_go_on.set()
        assert [future.exception(10) is None for future in futures] == [True, False, True, True]
        assert futures[3].result()[0, 0] == 2


def test_what_is_cancelled_is_not_scored(scorer: WidthScorer) -> None:
    with batcher(scorer) as work, work.admitting(4):
        work.submit(0, "wait")
        scorer.entered.wait(10)
        futures = [work.submit(i, str(i)) for i in range(3)]
        assert futures[1].cancel()
        scorer.may_go_on.set()
        futures[2].result(10)
    assert scorer.batches == [["wait"], ["0", "2"]]


def test_no_more_is_taken_on_than_the_queue_holds(scorer: WidthScorer) -> None:
    with batcher(scorer, most=3) as work, work.admitting(2):
        with work.admitting(1), pytest.raises(HTTPException, match="queue: 3 pairs wait") as caught, work.admitting(1):
            pass
        assert caught.value.status_code == 429 and caught.value.headers == {"Retry-After": "1"}
        with work.admitting(1):  # what has left makes room
            pass


def test_calls_come_between_batches_and_closing_finishes_what_waits(scorer: WidthScorer) -> None:
    with batcher(scorer) as work, work.admitting(3):
        work.submit(0, "wait")
        scorer.entered.wait(10)
        called = work.call(lambda: len(scorer.batches))
        after = [work.submit(i, str(i)) for i in range(2)]
        scorer.may_go_on.set()
        work.close()
        assert called.done() and all(future.done() for future in after)
        assert called.result() == 1
