"""Prompts that generators write into their pictures: AUTOMATIC1111 and its kin, ComfyUI, InvokeAI.

A note of a picture is whatever anybody has put there: it is read as data, in bounded time, and refused with a reason.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from ipiqa.errors import DataError
from ipiqa.processors.image import FORMATS, one_line

_LONGEST_NOTE = 4_000_000  # characters; a workflow of a thousand nodes has fewer
_EXIF_IFD, _USER_COMMENT, _CAMERA_TAGS = 0x8769, 0x9286, (0x010E, 0x010F, 0x0110)
# names of inputs of ComfyUI's nodes: texts to be encoded, texts only held, and what others have encoded
_TEXTS = ("text", "text_g", "text_l", "clip_g", "clip_l", "t5xxl", "prompt")
_HOLDING = ("text", "value", "string", "prompt")
_PASSED = ("positive", "guider", "")
_MOST_INPUTS, _LONGEST_CHAIN = 100_000, 100


def embedded_prompt(source: Path | bytes) -> str:
    """Returns the prompt that an image was made from, as its generator has noted it; DataError: there is none."""
    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=FORMATS) as image:
            notes = _notes(image)
            if image.format == "PNG" and not notes.keys() & _READERS.keys():
                image.load()  # notes may stand behind the pixels
                notes = _notes(image)
    except Exception as error:  # Pillow's parsers fail in many ways, all of which mean a broken file
        raise DataError(f"the image cannot be read: {one_line(error)}") from error
    problem = "no generator has noted one in the image"
    for name in [name for name in _READERS if name in notes]:
        try:
            if len(notes[name]) > _LONGEST_NOTE:
                raise ValueError(f"it has more than {_LONGEST_NOTE:,} characters")
            if prompt := _READERS[name](notes[name]).strip(" \t\r\n\0"):
                return prompt
            problem = f"the note {name!r} has an empty one"
        except RecursionError:
            problem = f"the note {name!r} is nested too deep"
        except ValueError as error:
            problem = f"the note {name!r}: {error}"
    raise DataError(problem)


def _notes(image: Image.Image) -> dict[str, str]:
    """Returns the texts in an image by their names; those of EXIF by the names they would have in a PNG."""
    exif = image.getexif()
    notes = {}
    for text in map(exif.get, _CAMERA_TAGS):
        if isinstance(text, str) and text[:7].lower() == "prompt:":  # how ComfyUI writes a WebP
            notes["prompt"] = text[7:]
    comment = exif.get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    if comment:
        notes["parameters"] = comment if isinstance(comment, str) else _user_comment(comment)
    return notes | {str(name): text for name, text in image.info.items() if isinstance(text, str)}


def _user_comment(content: bytes) -> str:
    """Returns an EXIF comment, which names its encoding in its first 8 bytes, but not the order of UTF-16's."""
    code, text = content[:8], content[8:]
    if code != b"UNICODE\0":
        known = code in (b"ASCII\0\0\0", bytes(8))
        return (text if known else content).decode("utf-8", "backslashreplace")
    text = text[: len(text) // 2 * 2]
    if text[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return text.decode("utf-16", "replace")
    is_big = text[::2].count(0) >= text[1::2].count(0)  # the names of settings are ASCII, whatever the prompt is
    return text.decode("utf-16-be" if is_big else "utf-16-le", "replace")


def _parameters(text: str) -> str:
    """Returns the prompt in AUTOMATIC1111's note: what stands before the negative prompt and the settings."""
    try:
        content = json.loads(text)
    except ValueError:
        return re.split(r"^(?:Negative prompt:|Steps: \d)", text, maxsplit=1, flags=re.MULTILINE)[0]
    if isinstance(content, dict):  # others write JSON under this name
        content = content.get("sui_image_params", content)
    return _text_at(content, "prompt")


def _invokeai(text: str) -> str:
    content = json.loads(text)
    if isinstance(content, dict) and "positive_prompt" in content:
        return _text_at(content, "positive_prompt")
    image = content.get("image") if isinstance(content, dict) else None
    prompts = image.get("prompt") if isinstance(image, dict) else None
    if not isinstance(prompts, list):
        return _text_at(image, "prompt")
    return ", ".join(_text_at(prompt, "prompt") for prompt in prompts)


def _dream(text: str) -> str:
    """Returns the prompt in a command line of InvokeAI: in quotes, before the first option."""
    quoted = re.match(r'\s*"(.*?)"\s*(?:-\w|\Z)', text, re.DOTALL)
    return quoted[1] if quoted else re.split(r"\s-[A-Za-z]", text, maxsplit=1)[0]


def _text_at(content: Any, key: str) -> str:
    if not isinstance(content, dict) or not isinstance(content.get(key), str):
        raise ValueError(f"it has no text {key!r}")
    return content[key]


def _comfyui(text: str) -> str:
    """Returns the prompt in a workflow: what is encoded for the positive input of its samplers.

    Where no sampler leads to one, all nodes with a positive input are asked, then all that encode a text. Several
    different prompts are a ValueError: the note does not tell which one made the picture.
    """
    try:
        content = json.loads(text)
    except ValueError:
        if text.lstrip().startswith("{"):
            raise
        return text  # written by something else
    listed = content.items() if isinstance(content, dict) else ()
    workflow = _Workflow({n: node for n, node in listed if isinstance(node, dict) and _inputs(node)})
    for starts in (workflow.inputs("sampler", "positive", "guider"), workflow.inputs("", "positive"),
                   [[number, 0] for number in workflow.numbers("textencode")]):  # fmt: skip
        found = {", ".join(workflow.texts(start, set())): None for start in starts}
        found.pop("", None)
        if len(found) > 1:
            raise ValueError(f"its workflow has {len(found)} different ones")
        if found:
            return next(iter(found))
    raise ValueError("its workflow encodes no text")


class _Workflow:
    """The nodes of a workflow by their numbers. ValueError: one that would take for ever."""

    def __init__(self, nodes: dict[str, dict[str, Any]]) -> None:
        self.nodes = nodes
        self.left = _MOST_INPUTS

    def numbers(self, kind: str) -> list[str]:
        """Returns which nodes have a word in the name of their class."""
        classes = {number: str(node.get("class_type")).lower().replace(" ", "") for number, node in self.nodes.items()}
        return [number for number, name in classes.items() if kind in name]

    def inputs(self, kind: str, *names: str) -> list[Any]:
        """Returns the inputs of these names that nodes of a class have."""
        found = (_inputs(self.nodes[number]) for number in self.numbers(kind))
        return [inputs[name] for inputs in found for name in names if name in inputs]

    def texts(self, value: Any, seen: set[str]) -> list[str]:
        """Returns the different texts behind an input, up through nodes that pass on what others have encoded."""
        if isinstance(value, str):
            return [value.strip()] if value.strip() else []
        number = _linked(value)
        if number in seen or number not in self.nodes:
            return []
        seen.add(number)
        inputs = _inputs(self.nodes[number])
        self.left -= len(inputs)
        if self.left < 0:
            raise ValueError("its workflow is too large")
        found = [self.string(inputs[name]) for name in _TEXTS if name in inputs]
        if not found:
            passed = [v for name, v in inputs.items() if name in _PASSED or name.startswith("cond")]
            found = [text for link in passed for text in self.texts(link, seen)]
        return list(dict.fromkeys(text.strip() for text in found if text.strip()))

    def string(self, value: Any) -> str:
        """Returns a text, or that of the node which holds it; ValueError where it is computed."""
        for _ in range(_LONGEST_CHAIN):
            if isinstance(value, str):
                return value
            inputs = _inputs(self.nodes.get(_linked(value), {}))
            held = [inputs[name] for name in _HOLDING if isinstance(inputs.get(name), (str, list))]
            if len(held) != 1:
                break
            value = held[0]
        raise ValueError("its workflow computes it")


def _inputs(node: dict[str, Any]) -> dict[str, Any]:
    return node["inputs"] if isinstance(node.get("inputs"), dict) else {}


def _linked(value: Any) -> str:
    """Returns the number of the node that an input is linked to, "" where it is not linked."""
    return str(value[0]) if isinstance(value, list) and len(value) == 2 else ""


_READERS: dict[str, Callable[[str], str]] = {
    "parameters": _parameters, "prompt": _comfyui, "invokeai_metadata": _invokeai, "sd-metadata": _invokeai,
    "Dream": _dream,
}  # fmt: skip
