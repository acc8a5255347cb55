"""Prompts that generators write into their pictures: AUTOMATIC1111 and its kin, ComfyUI, InvokeAI.

A note of a picture is whatever anybody has put there: it is read as data, in bounded time, and refused with a reason.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ipiqa.errors import DataError
from ipiqa.processors.image import FORMATS, one_line

_LONGEST_NOTE = 4_000_000  # characters; a workflow of a thousand nodes has fewer
_EXIF_IFD, _USER_COMMENT, _CAMERA_TAGS = 0x8769, 0x9286, (0x010E, 0x010F, 0x0110)
# names of inputs of ComfyUI's nodes: texts to be encoded, texts only held, and what others have encoded
_TEXTS = ("text", "text_g", "text_l", "clip_g", "clip_l", "t5xxl", "prompt")
_HELD = ("text", "value", "string", "prompt")
_PASSED = ("positive", "guider", "")


def embedded_prompt(source: Path | bytes) -> str:
    """Returns the prompt that an image was made from, as its generator has noted it; DataError: there is none."""
    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=FORMATS) as image:
            if not (notes := image.info).keys() & _READERS.keys():
                notes = _exif_notes(image) | image.info  # of a PNG it reads the pixels, and the notes behind them
    except Exception as error:  # Pillow's parsers fail in many ways, all of which mean a broken file
        raise DataError(f"the image cannot be read: {one_line(error)}") from error
    problem = "no generator has noted one in the image"
    for name in [name for name in _READERS if isinstance(notes.get(name), str)]:
        try:
            if len(notes[name]) > _LONGEST_NOTE:
                raise DataError(f"it has more than {_LONGEST_NOTE:,} characters")
            if prompt := _READERS[name](notes[name]).replace("\0", "").strip():
                return prompt
            problem = f"the note {name!r} has an empty one"
        except DataError as error:
            problem = f"the note {name!r}: {error}"
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):  # not JSON, or other JSON
            problem = f"the note {name!r} is of no known form"
    raise DataError(problem)


def _exif_notes(image: Image.Image) -> dict[str, str]:
    """Returns the notes in EXIF by the names they would have in a PNG."""
    exif = image.getexif()
    notes = {}
    for text in map(exif.get, _CAMERA_TAGS):
        if isinstance(text, str) and text[:7].lower() == "prompt:":  # how ComfyUI writes a WebP
            notes["prompt"] = text[7:]
    if comment := exif.get_ifd(_EXIF_IFD).get(_USER_COMMENT):
        notes["parameters"] = comment if isinstance(comment, str) else _user_comment(comment)
    return notes


def _user_comment(content: bytes) -> str:
    """Returns an EXIF comment, which names its encoding in its first 8 bytes, but not the order of UTF-16's."""
    code, text = content[:8], content[8:]
    if code != b"UNICODE\0":
        return (text if code in (b"ASCII\0\0\0", bytes(8)) else content).decode("utf-8", "backslashreplace")
    is_big = text[::2].count(0) >= text[1::2].count(0)  # the names of settings are ASCII, whatever the prompt is
    return text[: len(text) // 2 * 2].decode("utf-16-be" if is_big else "utf-16-le", "replace").lstrip("\ufeff")


def _parameters(text: str) -> str:
    """Returns the prompt in AUTOMATIC1111's note: what stands before the negative prompt and the settings."""
    try:
        content = json.loads(text)
    except ValueError:
        return re.split(r"^(?:Negative prompt:|Steps: \d)", text, maxsplit=1, flags=re.MULTILINE)[0]
    return content.get("sui_image_params", content)["prompt"]  # others write JSON under this name


def _comfyui(text: str) -> str:
    """Returns the prompt in a workflow: what is encoded for the positive input of its samplers.

    Where no sampler leads to one, all nodes with a positive input are asked. Several different prompts are a DataError:
    the note does not tell which one made the picture.
    """
    if not text.lstrip().startswith("{"):
        return text  # written by something else
    content = {number: node for number, node in json.loads(text).items() if isinstance(node, dict)}
    nodes = {number: node["inputs"] for number, node in content.items() if isinstance(node.get("inputs"), dict)}
    samplers = [nodes[number] for number in nodes if "sampler" in str(content[number].get("class_type")).lower()]
    workflow = _Workflow(nodes)
    for starts in (
        [inputs[name] for inputs in samplers for name in ("positive", "guider") if name in inputs],
        [inputs["positive"] for inputs in nodes.values() if "positive" in inputs],
    ):
        found = {", ".join(workflow.texts(start, _TEXTS, set())) for start in starts} - {""}
        if len(found) > 1:
            raise DataError(f"its workflow has {len(found)} different ones")
        if found:
            return found.pop()
    raise DataError("its workflow encodes no text")


@dataclass
class _Workflow:
    """The inputs of a workflow's nodes. A DataError where following them would take for ever."""

    nodes: dict[str, dict[str, Any]]
    left: int = 100_000  # inputs to be looked at

    def texts(self, value: Any, names: Sequence[str], seen: set[str]) -> list[str]:
        """Returns the different texts behind an input: those with these names, of the nodes that lead to it."""
        if isinstance(value, str):
            return [value.strip()] if value.strip() else []
        number = str(value[0]) if isinstance(value, list) and len(value) == 2 else ""  # of the node it is linked to
        if number in seen or number not in self.nodes:
            return []
        seen.add(number)
        self.left -= len(self.nodes[number])
        if self.left < 0:
            raise DataError("its workflow is too large")
        found: list[str] = []
        for name, link in sorted(self.nodes[number].items(), key=lambda item: item[0] in names):
            if name in names and isinstance(link, (str, list)):
                own = self.texts(link, _HELD, seen if names is _HELD else set())
                if isinstance(link, list) and len(own) != 1:
                    raise DataError("its workflow computes it")
                found += own
            elif name in _PASSED or name.startswith("cond"):
                found += self.texts(link, names, seen)
        return list(dict.fromkeys(found))


_READERS = {
    "parameters": _parameters,
    "prompt": _comfyui,
    "invokeai_metadata": lambda text: json.loads(text)["positive_prompt"],
}
