"""What the server refuses under load, and what it does with clients that are slow or gone."""

from __future__ import annotations

import select
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from serving import FORM, TIMEOUT, Client, WidthScorer, eventually, form, png, serving

from ipiqa.errors import ConfigError
from ipiqa.serve.bodies import Limits


@pytest.fixture
def scorer() -> WidthScorer:
    return WidthScorer()


def raw(port: int, head: str, body: bytes = b"", kind: str = "application/json") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), TIMEOUT)
    connection.sendall(f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n{head}\r\n\r\n".encode() + body)
    return connection


def test_a_body_without_a_length_is_cut_at_the_limit(scorer: WidthScorer) -> None:
    with serving(scorer, Limits(upload=20_000)) as port:
        with raw(port, "Transfer-Encoding: chunked") as connection:
            for _ in range(30):
                connection.sendall(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
            assert b" 413 " in connection.recv(1000)
        with raw(port, f"Content-Length: {10**15}") as connection:  # not a byte of it is waited for
            assert b" 413 " in connection.recv(1000)
        with raw(port, "Content-Encoding: gzip\r\nContent-Length: 3", b"abc") as connection:
            assert b" 415 " in connection.recv(1000)


def test_bodies_together_are_limited(scorer: WidthScorer) -> None:
    limits = Limits(upload=20_000, queue=256, seconds=TIMEOUT)
    with serving(scorer, limits) as port:
        started = [raw(port, "Content-Length: 20000", b"x" * 19_000) for _ in range(18)]
        # 16 bodies of 19,000 bytes fit in 16 times 20,000 bytes
        eventually(lambda: len(select.select(started, [], [], 0)[0]) == 2)
        for connection in select.select(started, [], [], 0.3)[0]:
            assert b" 429 " in connection.recv(1000)
        for connection in started:
            connection.close()
        with Client(port) as client:
            eventually(lambda: client.form(("image", png(30)), ("prompt", "a")).status == 200)


def test_a_full_queue_a_late_answer_and_a_slow_body_are_refused(
    scorer: WidthScorer, caplog: pytest.LogCaptureFixture
) -> None:
    limits = Limits(pairs=3, queue=4, seconds=1, batch_size=2)
    scorer.texts("the first one loads the tokenizer", 1)
    with serving(scorer, limits) as port, Client(port) as client, Client(port) as other:
        answers: list[Any] = []
        waits = threading.Thread(target=lambda: answers.append(other.form(("image", png()), ("prompt", "wait"))))
        waits.start()
        assert scorer.entered.wait(TIMEOUT)
        pair = [("image", png())] * 3
        late = threading.Thread(target=lambda: answers.append(client.form(*pair, ("prompt", "late"))))
        late.start()
        time.sleep(0.3)
        with Client(port) as third:
            answers.append(third.form(*pair, ("prompt", "never")))
        waits.join(TIMEOUT)
        late.join(TIMEOUT)
        full, *others = answers
        assert full.content["error"] == "queue: 4 pairs wait, and the limit is 4. Try again later."
        assert full.headers["retry-after"] == "1"
        assert [(a.status, a.content["error"]) for a in others] == [
            (503, "not answered within 1 s. Try again later.")
        ] * 2
        scorer.may_go_on.set()
        assert client.form(("image", png()), ("prompt", "a")).status == 200
        assert scorer.batches == [["wait"], ["a"]]  # what was late has been dropped
        with raw(port, "Content-Length: 100", b"x") as connection:
            assert b" 408 " in connection.recv(1000)
    assert not caplog.records  # of a server under load, the log says nothing


def test_what_a_client_that_has_gone_asked_for_is_dropped(scorer: WidthScorer) -> None:
    body = form(("image", png()), ("prompt", "gone"))
    with ThreadPoolExecutor(1) as pool, serving(scorer) as port, Client(port) as client:
        waits = pool.submit(client.form, ("image", png()), ("prompt", "wait"))
        assert scorer.entered.wait(TIMEOUT)
        raw(port, f"Content-Length: {len(body)}", body, FORM).close()
        time.sleep(0.5)
        scorer.may_go_on.set()
        assert waits.result().status == 200
        assert client.form(("image", png()), ("prompt", "next")).status == 200
    assert scorer.batches == [["wait"], ["next"]]


def test_a_server_that_is_stopped_answers_what_runs(scorer: WidthScorer) -> None:
    with ThreadPoolExecutor(2) as pool:
        with serving(scorer) as port:
            clients = Client(port), Client(port)
            first = pool.submit(clients[0].form, ("image", png(40)), ("prompt", "wait"))
            assert scorer.entered.wait(TIMEOUT)
            second = pool.submit(clients[1].form, ("image", png(50)), ("prompt", "a"))
            time.sleep(0.5)
            threading.Timer(0.5, scorer.may_go_on.set).start()
        assert [a.result().content["scores"][0]["size"]["score"] for a in (first, second)] == [40, 50]
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", port), 5)
    for client in clients:
        client.connection.close()


def test_limits_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="--max-queue: 8 is less than the 9 pairs of one request"):
        Limits(pairs=9, queue=8)
