"""The HTTP interface: scores, limits, and what clients send by mistake or in bad faith."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import FORM, TIMEOUT, Client, WidthScorer, form, images_of, png, serving
from toy import write_config

import ipiqa
from ipiqa.config.loading import load_config
from ipiqa.explain import explain
from ipiqa.files import write_text
from ipiqa.scoring.scorer import Scorer
from ipiqa.serve.bodies import Limits
from ipiqa.training.cross_validation import run

PAGE = Path(ipiqa.__file__).parent / "serve" / "page.html"
SMALL = Limits(upload=20_000, pixels=10_000, pairs=3, prompt=50, queue=4, seconds=TIMEOUT, batch_size=2)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scorer, list[Path]]:
    """A model of two folds, and its images."""
    folder = tmp_path_factory.mktemp("toy")
    return ipiqa.load(run(load_config(write_config(folder)))), images_of(folder)


@pytest.fixture(scope="module")
def port_of_model(toy: tuple[Scorer, list[Path]]) -> Iterator[int]:
    with serving(toy[0]) as port:
        yield port


@pytest.fixture
def model(port_of_model: int) -> Iterator[Client]:
    with Client(port_of_model) as client:
        yield client


@pytest.fixture
def scorer() -> WidthScorer:
    return WidthScorer()


@pytest.fixture(scope="module")
def port_of_small() -> Iterator[int]:
    with serving(WidthScorer(), SMALL) as port:
        yield port


@pytest.fixture
def small(port_of_small: int) -> Iterator[Client]:
    with Client(port_of_small) as client:
        yield client


def values(answer: Any, key: str = "score") -> np.ndarray:
    return np.array([[pair[target][key] for target in ("quality", "alignment")] for pair in answer.content["scores"]])


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


# ------------------------------------------------------------------------------------------------------------- results


def test_scores_are_those_of_the_direct_call(model: Client, toy: tuple[Scorer, list[Path]]) -> None:
    scorer, paths = toy
    paths, prompts = paths[:7], [f"a {word} tree" for word in "abcdefg"]
    expected = scorer.frame(paths, prompts)
    contents = [path.read_bytes() for path in paths]
    as_form = model.form(*(("image", content) for content in contents), *(("prompt", text) for text in prompts))
    pairs = [
        {"image": base64.encodebytes(content).decode(), "prompt": text}
        for content, text in zip(contents, prompts, strict=True)
    ]
    as_json = model.json({"pairs": pairs})
    for answer in (as_form, as_json):
        assert answer.status == 200 and answer.content["warnings"] == [] and answer.content["model"] == "toy"
        for key, column in (("score", ""), ("percentile", "_percentile"), ("std", "_std")):
            columns = [f"{target}{column}" for target in ("quality", "alignment")]
            np.testing.assert_allclose(values(answer, key), expected[columns], rtol=1e-4, atol=1e-5)
    assert as_form.content["targets"][0] == {
        "name": "quality", "low": 0.0, "high": 5.0, "meaning": "perceptual quality: how good the image looks",
    }  # fmt: skip
    one_for_all = model.form(*(("image", content) for content in contents), ("prompt", "an old house"))
    np.testing.assert_allclose(values(one_for_all), scorer.score(paths, "an old house"), atol=1e-5)


def test_requests_at_once_are_scored_in_few_batches(scorer: WidthScorer) -> None:
    limits = Limits(batch_size=16)
    with serving(scorer, limits) as port, ThreadPoolExecutor(17) as pool:

        def ask(width: int) -> float:
            with Client(port) as client:
                answer = client.form(("image", png(width)), ("prompt", "wait" if width == 0x10 else "go"))
                return float(answer.content["scores"][0]["size"]["score"])

        first = pool.submit(ask, 0x10)
        assert scorer.entered.wait(TIMEOUT)
        others = [pool.submit(ask, 20 + i) for i in range(16)]
        time.sleep(1)  # all have come
        scorer.may_go_on.set()
        assert first.result() == 16 and [other.result() for other in others] == [20 + i for i in range(16)]
    assert len(scorer.batches) <= 3


def test_a_pair_that_cannot_be_scored_has_an_error_and_hurts_no_other(small: Client) -> None:
    answer = small.form(("image", png(20)), ("image", b"no image"), ("image", png(30)), ("prompt", "a"))
    scores = answer.content["scores"]
    assert answer.status == 200 and scores[1] == {"error": "no image"}
    assert scores[0]["size"] == {"score": 20, "percentile": 20, "std": pytest.approx(2**0.5)}
    assert scores[2]["other"] == {"score": 30, "std": pytest.approx(2**0.5)}
    mixed = [("nan", "its scores are not finite"), ("fail", "internal error"), ("good", "")]
    answer = small.form(*(("image", png(20 + i)) for i in range(3)), *(("prompt", prompt) for prompt, _ in mixed))
    assert answer.status == 200 and answer.content["scores"][2]["size"]["score"] == 22
    for pair, (_, message) in zip(answer.content["scores"][:2], mixed, strict=False):
        assert pair["error"].startswith(message) and "secret" not in pair["error"]


@pytest.mark.parametrize(
    ("prompt", "image", "status", "message"),
    [
        ("a", b"", 422, "no image"),
        ("", png(), 422, "prompts: row 0: '' is no prompt"),
        (" \n", png(), 422, "is no prompt"),
        ("a" * 51, png(), 422, "prompt: 51 characters. Send a text of at most 50 characters."),
        ("a\0b", png(), 422, "prompt: holds NUL or half a character"),
        ("\ud800", png(), 422, "prompt: holds NUL or half a character"),
        ("a", png(101, 100), 422, "image: 101x100 are 0.0 million pixels. Send one of at most 0.01 million."),
        ("fail", png(), 500, "internal error: the log of the server has more."),
        ("nan", png(), 422, "its scores are not finite."),
    ],
)
def test_where_nothing_can_be_scored_the_status_says_so(
    small: Client, prompt: str, image: bytes, status: int, message: str
) -> None:
    answer = small.json({"pairs": [{"image": b64(image), "prompt": prompt}]})
    assert answer.status == status and message in answer.content["error"]
    assert answer.content["scores"] == [{"error": answer.content["error"]}]


def test_a_prompt_longer_than_the_model_reads_is_told_of(model: Client, toy: tuple[Scorer, list[Path]]) -> None:
    image = toy[1][0].read_bytes()
    answer = model.form(("image", image), ("image", image), ("prompt", "tree"), ("prompt", "tree " * 90))
    assert [warning[:28] for warning in answer.content["warnings"]] == ["pair 1: the prompt is longer"]


def test_an_explanation_is_that_of_the_direct_call(model: Client, toy: tuple[Scorer, list[Path]]) -> None:
    scorer, paths = toy
    answer = model.form(("image", paths[0].read_bytes()), ("prompt", "a red tree"), path="/v1/explain")
    expected = explain(scorer, paths[0], "a red tree")
    assert answer.status == 200 and answer.content["words"]["words"] == ["a", "red", "tree"]
    assert [heat["kind"] for heat in answer.content["maps"]] == ["prompt attention", "image attention"]
    for heat, direct in zip(answer.content["maps"], expected.maps, strict=True):
        np.testing.assert_allclose(heat["weights"], direct.weights, atol=1e-6)
        assert heat["mean_token"] == pytest.approx(direct.mean_token, abs=1e-6) and heat["target"] == ""
    differences = answer.content["words"]["differences"]  # of each target (F, W)
    for target, name in enumerate(("quality", "alignment")):
        np.testing.assert_allclose(differences[name], expected.words.differences[:, :, target], atol=1e-5)
    np.testing.assert_allclose(values(answer), scorer.score(paths[0], "a red tree"), atol=1e-5)
    two = model.form(("image", b"a"), ("image", b"b"), ("prompt", "a"), path="/v1/explain")
    assert two.status == 400 and two.content["error"] == "image: 2 of them. Send one to be explained."
    bad = model.form(("image", b"a"), ("prompt", "a"), path="/v1/explain")
    assert bad.status == 422 and "is not an image" in bad.content["error"]


def test_the_model_says_what_it_is(model: Client, small: Client, toy: tuple[Scorer, list[Path]]) -> None:
    about = model.ask("/v1/model").content
    assert about["needs_prompt"] and about["image_size"] == 32 and about["limits"]["pairs"] == 32
    assert about["trained_on"]["dataset"] == "agiqa_3k" and "images" not in about["trained_on"]
    assert about["trained_on"]["quantiles"] == toy[0].trained_on.quantiles
    assert "secret" not in json.dumps(small.ask("/v1/model").content)
    assert model.ask("/health").content == {"status": "ok"}


# ------------------------------------------------------------------------------------------------------------- refused

DEEP = b'{"pairs": ' + b"[" * 5000
LONG_NUMBER = b'{"pairs": [{"image": ' + b"9" * 15_000 + b"}]}"


@pytest.mark.parametrize(
    ("kind", "body", "status", "message"),
    [
        ("text/plain", b"x", 415, "Content-Type: 'text/plain' is not read. Send multipart/form-data with fields"),
        ("", b"x", 415, "Content-Type: '' is not read"),
        ("multipart/form-data", b"x", 400, "Missing boundary"),
        (FORM, b"x", 400, "multipart"),
        (FORM, form(), 400, "image: missing. Send at least one, such as with curl -F image=@cat.png."),
        (FORM, form(("prompt", "a")), 400, "image: missing"),
        (FORM, form(("image", "cat.png")), 400, "image: a text. Send a file, with @: curl -F image=@cat.png"),
        (FORM, form(("image", png()), ("prompt", b"a")), 400, "prompt: a file. Send a text, without @"),
        (FORM, form(("imgae", png())), 400, "imgae: unknown. Did you mean 'image'? There are: image, prompt."),
        (FORM, form(("image", png()), ("prompt", "a"), ("prompt", "b")), 400, "prompt: 2 for 1 images. Send one for"),
        (FORM, form(*[("image", png())] * 4), 413, "4 pairs are more than the limit of 3. Send them in parts."),
        (FORM, form(("image", b"x" * 20_000)), 413, "body: more than the limit of 20,000 bytes. Send less at once."),
        ("application/json", b"{", 400, "body: no JSON ("),
        ("application/json", b"\xff\xfe\xff", 400, "body: no JSON ("),
        ("application/json", DEEP, 413, "body: more content than 3 pairs have."),
        ("application/json", DEEP[:150], 400, "body: no JSON ("),
        ("application/json", LONG_NUMBER, 400, "pairs[0]: no pair of an image and a prompt, both texts."),
        ("application/json", b"[]", 400, "body: no list 'pairs'. Send {"),
        ("application/json", b'{"pairs": {}}', 400, "body: no list 'pairs'"),
        ("application/json", b'{"pairs": []}', 400, "image: missing"),
        ("application/json", b'{"pairs": ["a"]}', 400, "pairs[0]: no pair"),
        ("application/json", b'{"pairs": [{"prompt": "a"}]}', 400, "pairs[0]: no pair"),
        ("application/json", b'{"pairs": [{"image": "", "prompt": 7}]}', 400, "pairs[0]: no pair"),
        ("application/json", b'{"pairs": [{"url": "x"}]}', 400, "pairs[0].url: unknown."),
        (
            "application/json",
            b'{"pairs": [{"image": "/etc/passwd"}]}',
            400,
            "is not base64. Send the content of a file",
        ),
        ("application/json", b'{"pairs": [{"image": "http://x.de/a.png"}]}', 400, "paths and URLs are not read."),
    ],
)
def test_what_is_not_understood_is_refused_in_one_line(
    small: Client, kind: str, body: bytes, status: int, message: str
) -> None:
    answer = small.ask("/v1/score", body, kind)
    assert answer.status == status and message in answer.content["error"] and "\n" not in answer.content["error"]
    assert small.form(("image", png()), ("prompt", "a")).status == 200  # on the same connection


def test_json_that_is_too_deep_for_its_reader_is_refused(model: Client) -> None:
    answer = model.json(b'{"pairs": ' + b"[" * 60_000)
    assert answer.status == 400 and answer.content["error"].startswith("body: no JSON (")


def test_a_decompression_bomb_is_not_decoded(model: Client) -> None:
    def bomb(side: int) -> bytes:
        """A PNG of many pixels in few bytes."""
        parts = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))]
        parts += [(b"IDAT", zlib.compress(bytes((side // 8 + 1) * side), 9)), (b"IEND", b"")]
        chunks = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts]
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)

    small, large = bomb(7000), bomb(20_000)
    assert len(small) < 10_000 and len(large) < 100_000
    start = time.monotonic()
    answer = model.form(("image", small), ("image", large), ("prompt", "a"))
    assert answer.status == 422 and time.monotonic() - start < 5
    assert answer.content["error"] == "image: 7000x7000 are 49.0 million pixels. Send one of at most 40 million."
    assert "exceeds limit" in answer.content["scores"][1]["error"]


def test_no_file_of_the_server_can_be_read(model: Client, tmp_path: Path) -> None:
    write_text(tmp_path / "secret.txt", "secret")
    name = str(tmp_path / "secret.txt")
    for image in (name.encode(), f"file://{name}".encode()):
        answer = model.form(("image", image), ("prompt", "a"))
        assert answer.status == 422 and "is not an image" in answer.content["error"]
    for path in (f"/..{name}", f"//{name}", f"/%2e%2e{name}", "/page.html", "/../app.py", "/docs", "/redoc"):
        answer = model.ask(path)
        assert answer.status == 404 and answer.content == {"error": "Not Found"}
    assert model.ask("/v1/score").status == 405


# ------------------------------------------------------------------------------------------------ browsers and programs


def test_browsers_run_the_page_and_nothing_else(model: Client) -> None:
    answer = model.ask("/")
    assert answer.status == 200 and answer.content == PAGE.read_text(encoding="utf-8")
    script = re.findall(r"<script>(.*?)</script>", answer.content, re.DOTALL)[0]
    policy = answer.headers["content-security-policy"]
    assert f"script-src 'sha256-{b64(hashlib.sha256(script.encode()).digest())}'" in policy
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "unsafe-eval" not in policy
    assert not re.search(r"(src|href)=\"(?!data:|openapi)|url\(|import ", answer.content)
    for path in ("/", "/v1/model", "/nothing"):
        headers = model.ask(path).headers
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
        assert not any(name.startswith("access-control") for name in headers) and "server" not in headers


def test_openapi_describes_every_endpoint(model: Client) -> None:
    content = model.ask("/openapi.json").content
    assert {*content["paths"]} == {"/v1/score", "/v1/explain", "/v1/model", "/health"}
    for path in ("/v1/score", "/v1/explain"):
        body = content["paths"][path]["post"]["requestBody"]["content"]
        assert {*body["multipart/form-data"]["schema"]["properties"]} == {"image", "prompt"}
        assert {*body["application/json"]["schema"]["properties"]} == {"pairs"}
