"""What clients may send: pairs of an image and a prompt, within limits. Nothing that they name is ever opened."""

import asyncio
import base64
import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request

from ipiqa.datasets.readers import NOT_TEXT
from ipiqa.errors import ConfigError, DataError, did_you_mean, shorten
from ipiqa.processors.image import FORMATS

SHAPE = '{"pairs": [{"image": "<a file in base64>", "prompt": "<text>"}, ...]}'


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request, and all of them together, may ask for."""

    upload: int = 32 << 20  # bytes of a request's body; all bodies that are in hand may have 16 times as many
    pixels: int = 40_000_000  # of an image, by its header
    pairs: int = 32  # in one request
    prompt: int = 2000  # characters
    queue: int = 256  # pairs of all requests that are taken on and not yet answered
    seconds: float = 60  # for a request to arrive, and again for its answer
    batch_size: int = 16  # pairs scored together

    def __post_init__(self) -> None:
        if self.queue < self.pairs:
            wrong = f"--max-queue: {self.queue} is less than the {self.pairs} pairs of one request"
            raise ConfigError(f"{wrong}. Give it at least as many, or lower --max-pairs.")


class Pair(NamedTuple):
    """What a client wants scored."""

    image: bytes  # content of a file
    prompt: str | None


async def read_pairs(request: Request, limits: Limits) -> list[Pair]:
    """Returns the pairs of a request, one or more; HTTPException, with the status to answer, where it has none."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.headers.get("content-encoding", "identity") != "identity":
        raise HTTPException(415, "Content-Encoding: compressed bodies are not read. Send it as it is.")
    if kind == "multipart/form-data":
        pairs = await _of_form(request)
    elif kind == "application/json":
        pairs = await asyncio.to_thread(_of_json, await request.body(), limits)
    else:
        right = "Send multipart/form-data with fields image and prompt, or application/json."
        raise HTTPException(415, f"Content-Type: {kind[:80]!r} is not read. {right}")
    if not pairs:
        raise HTTPException(400, "image: missing. Send at least one, such as with curl -F image=@cat.png.")
    if len(pairs) > limits.pairs:
        raise HTTPException(413, f"{len(pairs)} pairs are more than the limit of {limits.pairs}. Send them in parts.")
    return pairs


async def _of_form(request: Request) -> list[Pair]:
    images: list[bytes] = []
    prompts: list[str] = []
    async with request.form() as form:
        for name, value in form.multi_items():
            _check_key(name)
            if isinstance(value, str) == (name == "image"):
                wrong = "a text. Send a file, with @" if name == "image" else "a file. Send a text, without @"
                raise HTTPException(400, f"{name}: {wrong}: curl -F image=@cat.png -F prompt='a cat'")
            if isinstance(value, str):
                prompts.append(value)
            else:
                images.append(await value.read())
    if len(prompts) not in (0, 1, len(images)):
        wrong = f"prompt: {len(prompts)} for {len(images)} images"
        raise HTTPException(400, f"{wrong}. Send one for all images, or one for each.")
    texts: Sequence[str | None] = prompts if len(prompts) > 1 else [prompts[0] if prompts else None] * len(images)
    return [*map(Pair, images, texts)]


def _of_json(body: bytes, limits: Limits) -> list[Pair]:
    # Lists of millions of empty lists need many times the memory of their text; pairs need few of these signs.
    if sum(map(body.count, (b"[", b"{", b","))) > limits.pairs * (limits.prompt + 10):
        raise HTTPException(413, f"body: more content than {limits.pairs} pairs have. Send them in parts.")
    try:
        content = json.loads(body, parse_int=float)  # the time that int takes grows with the square of the digits
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"body: no JSON ({shorten(str(error))}). Send {SHAPE}.") from None
    pairs = content.get("pairs") if isinstance(content, dict) else None
    if not isinstance(pairs, list):
        raise HTTPException(400, f"body: no list 'pairs'. Send {SHAPE}.")
    return [_of_item(pair, f"pairs[{i}]") for i, pair in enumerate(pairs)]


def _of_item(item: Any, where: str) -> Pair:
    for key in item if isinstance(item, dict) else ():
        _check_key(key, f"{where}.")
    image, prompt = (item.get("image"), item.get("prompt")) if isinstance(item, dict) else (None, None)
    if not isinstance(image, str) or not isinstance(prompt, (str, type(None))):
        raise HTTPException(400, f"{where}: no pair of an image and a prompt, both texts. Send {SHAPE}.")
    try:
        return Pair(base64.b64decode("".join(image.split()), validate=True), prompt)
    except ValueError:
        right = "Send the content of a file; paths and URLs are not read."
        raise HTTPException(400, f"{where}.image: {shorten(image)} is not base64. {right}") from None


def _check_key(key: str, where: str = "") -> None:
    if key not in Pair._fields:
        near = did_you_mean(key[:80], Pair._fields)
        raise HTTPException(400, f"{where}{key[:80]}: unknown.{near} There are: image, prompt.")


def check_pair(pair: Pair, limits: Limits) -> None:
    """Raises DataError where a prompt is too long or no text, or the header of an image says too many pixels."""
    prompt, width, height = pair.prompt or "", 0, 0
    if len(prompt) > limits.prompt or NOT_TEXT.search(prompt):
        wrong = f"{len(prompt)} characters" if len(prompt) > limits.prompt else "holds NUL or half a character"
        raise DataError(f"prompt: {wrong}. Send a text of at most {limits.prompt} characters.")
    with contextlib.suppress(Exception), Image.open(io.BytesIO(pair.image), formats=FORMATS) as image:
        width, height = image.size  # where there are none, whoever decodes it says what is wrong
    if width * height > limits.pixels:
        has = f"image: {width}x{height} are {width * height / 1e6:.1f} million pixels"
        raise DataError(f"{has}. Send one of at most {limits.pixels / 1e6:g} million.")
