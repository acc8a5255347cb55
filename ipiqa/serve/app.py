"""The HTTP interface of a scorer: scores, explanations, what the model is, and a page for people."""

import asyncio
import contextlib
import json
import logging
import os
import re
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import uvicorn
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.types import Message

import ipiqa
from ipiqa.errors import IpiqaError
from ipiqa.explain import Explanation, explain
from ipiqa.explain.picture import caption, notes
from ipiqa.files import without_nan
from ipiqa.prompts import num_too_long
from ipiqa.report.render import script_hash
from ipiqa.scoring.scorer import Scorer
from ipiqa.serve.batching import LATER, Batcher
from ipiqa.serve.bodies import Limits, Pair, check_pair, read_pairs

logger = logging.getLogger("ipiqa")

T = TypeVar("T")

INTERNAL = "internal error: the log of the server has more."
CUT = "the prompt is longer than the model reads; its last words do not count."
ENDS = {"score": "", "percentile": "_percentile", "std": "_std"}  # of the columns that a scorer's tables have
SAFE = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}


def make_app(scorer: Scorer, limits: Limits | None = None, name: str = "model") -> FastAPI:
    """Returns the application that serves a scorer under a name; while it runs, nobody else may use the scorer."""
    page, bodies = ((Path(__file__).parent / file).read_text("utf-8") for file in ("page.html", "openapi.json"))
    policy, takes = {"Content-Security-Policy": _policy(page)}, json.loads(bodies)  # what each endpoint takes
    service = _Service(scorer, limits or Limits(), name)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    # no pages of FastAPI's about the interface: they load scripts from elsewhere
    app = FastAPI(title="IP-IQA", version=ipiqa.__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.post("/v1/score", openapi_extra=takes["score"])(service.score)
    app.post("/v1/explain", openapi_extra=takes["explain"])(service.explain)
    app.get("/v1/model")(service.model)
    app.get("/health")(service.health)
    app.get("/", include_in_schema=False)(lambda: HTMLResponse(page, headers=policy))
    app.add_exception_handler(HTTPException, _on_error)
    app.add_exception_handler(Exception, _on_error)
    return app


def make_server(app: FastAPI, limits: Limits) -> uvicorn.Server:
    """Returns the server of an application: `run` it with a list of sockets that listen."""
    running = int(2 * limits.seconds) + 5  # seconds that a request may go on, and its answer take to be sent
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, headers=[*SAFE.items()], ws="none",
        timeout_keep_alive=75, timeout_graceful_shutdown=running,
    )  # fmt: skip
    return uvicorn.Server(config)


class _Service:
    """A scorer, the threads that work for it, and what they have in hand."""

    def __init__(self, scorer: Scorer, limits: Limits, name: str) -> None:
        self.scorer, self.limits = scorer, limits
        self.head = {"model": name, "targets": [asdict(target) for target in scorer.targets]}
        self.batcher = Batcher(scorer, limits.batch_size, limits.queue)
        self.decoders = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="ipiqa-decoding")
        self.held = 0  # bytes of bodies

    def close(self) -> None:
        """Ends the threads when they have done what waits."""
        self.decoders.shutdown()
        self.batcher.close()

    async def health(self) -> JSONResponse:
        """Whether the server takes requests."""
        return JSONResponse({"status": "ok"})

    async def model(self) -> JSONResponse:
        """What the scores mean, what the model was trained on, and the limits of a request."""
        scorer, known = self.scorer, asdict(self.scorer.trained_on)
        del known["images"]
        about = {"needs_prompt": scorer.needs_prompt, "image_size": scorer.image_size, "trained_on": known}
        return JSONResponse(without_nan({**self.head, **about, "limits": asdict(self.limits)}))

    async def score(self, request: Request) -> JSONResponse:
        """Scores of images and prompts, in order. A pair that cannot be scored has an error instead."""
        async with self._received(request) as pairs:
            with self.batcher.admitting(len(pairs)):
                outputs = await self._in_time(request, asyncio.gather(*map(self._score_pair, pairs)))
        warnings = [f"pair {i}: {CUT}" for i, pair in enumerate(pairs) if self._is_cut(pair)]
        content = {**self.head, "scores": [*map(self._as_json, outputs)], "warnings": warnings}
        if all(isinstance(output, str) for output in outputs):
            return JSONResponse({"error": outputs[0], **content}, 500 if INTERNAL in outputs else 422)
        return JSONResponse(content)

    async def explain(self, request: Request) -> JSONResponse:
        """Where in an image, and on which words of its prompt, the scores hang."""
        async with self._received(request) as pairs:
            if len(pairs) > 1:
                raise HTTPException(400, f"image: {len(pairs)} of them. Send one to be explained.")
            with self.batcher.admitting(1):
                job = self.batcher.call(self._explain, pairs[0])
                try:
                    explained = await self._in_time(request, asyncio.wrap_future(job))
                except IpiqaError as error:
                    raise HTTPException(422, str(error)) from None
        return JSONResponse({**self.head, "scores": [self._as_json(explained.scores)], **_as_lists(explained)})

    @contextlib.asynccontextmanager
    async def _received(self, request: Request) -> AsyncIterator[list[Pair]]:
        """Yields the pairs of a request, whose body counts as held until the block ends."""
        limits, size = self.limits, 0
        too_large = HTTPException(413, f"body: more than the limit of {limits.upload:,} bytes. Send less at once.")
        if int(request.headers.get("content-length", "0")) > limits.upload:
            raise too_large

        async def receive() -> Message:
            nonlocal size
            message = await request.receive()
            length = len(message.get("body", b""))
            size, self.held = size + length, self.held + length
            if size > limits.upload:
                raise too_large
            if self.held > 16 * limits.upload:
                raise HTTPException(429, "body: too many are being received. Try again later.", LATER)
            return message

        try:
            try:
                pairs = await asyncio.wait_for(read_pairs(Request(request.scope, receive), limits), limits.seconds)
            except (asyncio.TimeoutError, ClientDisconnect):
                raise HTTPException(408, f"body: not received within {limits.seconds:g} s.") from None
            yield pairs
        finally:
            self.held -= size

    async def _in_time(self, request: Request, work: asyncio.Future[T]) -> T:
        """Returns what work results in; it is dropped when its client has gone, or the time is over."""
        gone = asyncio.ensure_future(request.receive())  # the body has been read: the end is all that can come
        try:
            await asyncio.wait((work, gone), timeout=self.limits.seconds, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            raise HTTPException(503, f"not answered within {self.limits.seconds:g} s. Try again later.", LATER)
        finally:
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)  # or the log would tell of what nobody awaited

    async def _score_pair(self, pair: Pair) -> np.ndarray | str:
        """Returns the scores (F, T) of a pair, or why it has none."""
        try:
            prepared = await asyncio.get_running_loop().run_in_executor(self.decoders, self._prepare, pair)
            scores = await asyncio.wrap_future(self.batcher.submit(*prepared))
        except IpiqaError as error:
            return str(error)
        except Exception:
            logger.exception("a pair cannot be scored")
            return INTERNAL
        return scores if np.isfinite(scores).all() else "its scores are not finite."

    def _prepare(self, pair: Pair) -> tuple[Any, str]:
        check_pair(pair, self.limits)
        (text,) = self.scorer.texts(pair.prompt, 1)
        return self.scorer.prepare(pair.image), text  # bytes: a text would be opened as a path

    def _explain(self, pair: Pair) -> Explanation:
        check_pair(pair, self.limits)
        return explain(self.scorer, pair.image, pair.prompt)

    def _is_cut(self, pair: Pair) -> bool:
        prompt = (pair.prompt or "")[: self.limits.prompt]
        return self.scorer.needs_prompt and num_too_long([prompt]) > 0

    def _as_json(self, output: np.ndarray | str) -> dict[str, Any]:
        """Returns the score (F, T) of a pair for each target and what the scorer's tables add to it, or its error."""
        if isinstance(output, str):
            return {"error": output}
        columns, targets = self.scorer.columns(output[:, None]), dict[str, Any]()
        for target in self.scorer.targets:
            of_target = {key: columns.get(target.name + end) for key, end in ENDS.items()}
            targets[target.name] = {key: float(value[0]) for key, value in of_target.items() if value is not None}
        return targets


def _as_lists(explained: Explanation) -> dict[str, Any]:
    """Returns the maps and words of an explanation as JSON has them."""
    maps = []
    for heat in explained.maps:
        title, text = caption(heat)
        maps.append({**vars(heat), "weights": heat.weights.tolist(), "title": title, "caption": text})
    of_target = zip(explained.targets, explained.words.differences.transpose(2, 0, 1), strict=True)  # (T, F, W)
    differences = {target.name: folds.tolist() for target, folds in of_target}
    return {"maps": maps, "words": {**vars(explained.words), "differences": differences}, "notes": notes(explained)}


def _on_error(request: Request, error: Exception) -> JSONResponse:
    """Returns the answer to a request that failed; of what nobody expected, the log alone has more."""
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)
    return JSONResponse({"error": INTERNAL}, 500)


def _policy(page: str) -> str:
    """Returns what a browser may do on the page: run its own script, ask its own server."""
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    own = f"script-src '{script_hash(script)}'; style-src 'unsafe-inline'; img-src data: blob:; connect-src 'self'"
    return f"default-src 'none'; {own}; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
