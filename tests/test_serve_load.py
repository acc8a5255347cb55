"""A thousand requests of 32 clients: no error, and every score is that of the direct call."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import Client, images_of, serving
from toy import write_config

import ipiqa
from ipiqa.config.loading import load_config
from ipiqa.training.cross_validation import run

CLIENTS, REQUESTS = 32, 1000


def test_a_thousand_requests_of_32_clients_are_answered_rightly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = ipiqa.load(run(load_config(write_config(tmp_path))))
    contents = [path.read_bytes() for path in images_of(tmp_path)]
    prompts = [
        f"a {colour} {thing}" for colour in ("red", "blue", "old") for thing in ("tree", "house", "very long river")
    ]
    jobs = [(i % len(contents), prompts[i % len(prompts)]) for i in range(REQUESTS)]
    expected = scorer.score([contents[image] for image, _ in jobs], [prompt for _, prompt in jobs])
    batches: list[int] = []
    outputs = scorer.outputs

    def counted(images: Any, texts: Any) -> np.ndarray:
        batches.append(len(texts))
        return outputs(images, texts)

    monkeypatch.setattr(scorer, "outputs", counted)
    found = np.full(expected.shape, np.nan)

    def client(number: int) -> None:
        with Client(port) as connection:
            for i in range(number, REQUESTS, CLIENTS):
                image, prompt = jobs[i]
                answer = connection.form(("image", contents[image]), ("prompt", prompt))
                assert answer.status == 200, answer
                found[i] = [answer.content["scores"][0][target.name]["score"] for target in scorer.targets]

    with serving(scorer) as port, ThreadPoolExecutor(CLIENTS) as pool:
        for done in [pool.submit(client, number) for number in range(CLIENTS)]:
            done.result()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert sum(batches) == REQUESTS and len(batches) < REQUESTS / 2
