"""Prompts in the notes of pictures, in the forms that generators write, and notes of any other form."""

from __future__ import annotations

import contextlib
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from scored_rows import brief, rows_of

from ipiqa.errors import DataError
from ipiqa.scoring.embedded import embedded_prompt

SETTINGS = "Steps: 28, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1234, Size: 512x768, Model: x\nVersion: v1.9"
PARAMETERS = f"a cat, (red hat:1.2) <lora:x:1>\non a mat\nNegative prompt: blurry, \nbad hands\n{SETTINGS}"


def png(notes: dict[str, str], *, behind_pixels: bool = False) -> bytes:
    info, file = PngImagePlugin.PngInfo(), io.BytesIO()
    for name, text in notes.items():
        info.add_itxt(name, text) if not text.isascii() else info.add_text(name, text)
    Image.new("RGB", (8, 8)).save(file, "png", pnginfo=info)
    content = file.getvalue()
    if behind_pixels:
        start, end = content.index(b"tEXt") - 4, content.index(b"IDAT") - 4
        stop = content.index(b"IEND") - 4
        content = content[:start] + content[end:stop] + content[start:end] + content[stop:]
    return content


def with_exif(form: str, comment: bytes | None = None, **tags: str) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    if comment is not None:
        exif[0x8769] = {0x9286: comment}
    exif.update({{"make": 0x010F, "model": 0x0110}[name]: text for name, text in tags.items()})
    Image.new("RGB", (8, 8)).save(file, form, exif=exif)
    return file.getvalue()


def nodes(**changes: Any) -> dict[str, Any]:
    """Returns the workflow that ComfyUI starts with, with other or more nodes."""
    return {
        "n3": node("KSampler", seed=5, cfg=8.0, model=["n4", 0], positive=["n6", 0], negative=["n7", 0]),
        "n4": node("CheckpointLoaderSimple", ckpt_name="x.safetensors"),
        "n5": node("EmptyLatentImage", width=512, height=512, batch_size=1),
        "n6": node("CLIPTextEncode", text="a cat on a mat", clip=["n4", 1]),
        "n7": node("CLIPTextEncode", text="blurry", clip=["n4", 1]),
        "n9": node("SaveImage", filename_prefix="ComfyUI", images=["n8", 0]),
    } | changes  # fmt: skip


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": "positive"}}


def link(name: str, slot: int = 0) -> list[Any]:
    return [name, slot]


# ------------------------------------------------------------------------------------------ AUTOMATIC1111 and its kin

PNG_CASES: dict[str, tuple[dict[str, str], str]] = {
    "parameters": ({"parameters": PARAMETERS}, "a cat, (red hat:1.2) <lora:x:1>\non a mat"),
    "no negative prompt": ({"parameters": f"a cat\n{SETTINGS}"}, "a cat"),
    "words of the settings": ({"parameters": f"Steps: a stair, Negative prompt: x\n{SETTINGS}"},
                              "Steps: a stair, Negative prompt: x"),
    "nothing but a prompt": ({"parameters": "ein Kätzchen 猫\n"}, "ein Kätzchen 猫"),
    "braces": ({"parameters": f"{{a|b}} cat\n{SETTINGS}"}, "{a|b} cat"),
    "json": ({"parameters": '{"prompt": "a cat", "negative_prompt": "x"}'}, "a cat"),
    "swarm": ({"parameters": '{"sui_image_params": {"prompt": "a cat", "seed": 3}}'}, "a cat"),
    "both": ({"prompt": json.dumps(nodes()), "parameters": f"it\n{SETTINGS}"}, "it"),
    "invoke": ({"invokeai_metadata": '{"positive_prompt": "a cat", "negative_prompt": "x", "seed": 1}'}, "a cat"),
    "plain": ({"prompt": "a cat", "Software": "x"}, "a cat"),
    "bad note first": ({"parameters": '{"a": 1}', "prompt": "a cat"}, "a cat"),
}  # fmt: skip


@pytest.mark.parametrize("case", PNG_CASES)
def test_notes_of_a_png(case: str) -> None:
    notes, expected = PNG_CASES[case]
    assert embedded_prompt(png(notes)) == expected


def test_a_note_behind_the_pixels() -> None:
    content = png({"parameters": PARAMETERS}, behind_pixels=True)
    assert content.index(b"tEXt") > content.index(b"IDAT")
    assert embedded_prompt(content).startswith("a cat, (red")


COMMENTS = {
    "big": b"UNICODE\0" + "猫 cat\nSteps: 2, a".encode("utf-16-be"),
    "little": b"UNICODE\0" + "猫 cat\nSteps: 2, a".encode("utf-16-le"),
    "marked": b"UNICODE\0" + "猫 cat\nSteps: 2, a".encode("utf-16"),
    "half a unit": b"UNICODE\0" + "猫 cat\nSteps: 2, a".encode("utf-16-be") + b"\0",
    "ascii": b"ASCII\0\0\0" + "猫 cat\nSteps: 2, a\0".encode(),
    "undefined": bytes(8) + "猫 cat\nSteps: 2, a".encode(),
    "none": "猫 cat\nSteps: 2, a".encode(),
}


@pytest.mark.parametrize("form", ["jpeg", "webp", "png"])
@pytest.mark.parametrize("case", COMMENTS)
def test_comments_in_exif(case: str, form: str) -> None:
    assert embedded_prompt(with_exif(form, COMMENTS[case])) == "猫 cat"


def test_comfyui_in_a_webp() -> None:
    tags = {"model": "prompt:" + json.dumps(nodes()), "make": "workflow:{}"}
    assert embedded_prompt(with_exif("webp", **tags)) == "a cat on a mat"


# ------------------------------------------------------------------------------------------------------------- ComfyUI

POSITIVE = node("KSampler", positive=link("a"), negative=link("n7"))
WORKFLOWS: dict[str, tuple[dict[str, Any], str]] = {
    "default": ({}, "a cat on a mat"),
    "controlled": ({"n3": POSITIVE, "a": node("ControlNetApplyAdvanced", positive=link("b"), negative=link("n7")),
                    "b": node("FluxGuidance", guidance=3.5, conditioning=link("n6"))}, "a cat on a mat"),
    "combined": ({"n3": POSITIVE, "a": node("ConditioningCombine", conditioning_1=link("n6"), conditioning_2=link("b")),
                  "b": node("CLIPTextEncode", text=" at night ")}, "a cat on a mat, at night"),
    "text added": ({"n3": POSITIVE, "a": node("GLIGENTextboxApply", text="a hat", conditioning_to=link("n6"))},
                   "a cat on a mat, a hat"),
    "sdxl": ({"n3": POSITIVE, "a": node("CLIPTextEncodeSDXL", text_g="a cat", text_l="a cat", width=1024)}, "a cat"),
    "base and refiner": ({"b": node("KSamplerAdvanced", positive=link("a"), negative=link("n7")),
                          "a": node("CLIPTextEncodeSDXLRefiner", ascore=6, text="a cat on a mat")}, "a cat on a mat"),
    "flux": ({"n3": node("SamplerCustomAdvanced", noise=link("x"), guider=link("b")),
              "b": node("BasicGuider", conditioning=link("a")),
              "a": node("CLIPTextEncodeFlux", clip_l="cat", t5xxl="a cat sits", guidance=3)}, "cat, a cat sits"),
    "guided": ({"n3": node("SamplerCustomAdvanced", guider=link("b")),
                "b": node("CFGGuider", positive=link("n6"), negative=link("n7"))}, "a cat on a mat"),
    "text held elsewhere": ({"n6": node("CLIPTextEncode", text=link("s")), "s": node("Reroute", value=link("t")),
                             "t": node("PrimitiveString", value="a dog")}, "a dog"),
    "text held once for two": ({"n6": node("CLIPTextEncodeSDXL", text_g=link("s"), text_l=link("s")),
                                "s": node("PrimitiveString", value="a dog")}, "a dog"),
    "a number held elsewhere": ({"n3": POSITIVE, "a": node("X", conditioning=link("n6"), value=link("v")),
                                 "v": node("PrimitiveFloat", value=0.5)}, "a cat on a mat"),
    "loader": ({"n3": POSITIVE, "a": node("Efficient Loader", positive="a dog", negative="x", lora="y")}, "a dog"),
    "details by another": ({"d": node("FaceDetailer", positive=link("e")),
                            "e": node("CLIPTextEncode", text="a face")}, "a cat on a mat"),
    "unknown sampler": ({"n3": node("MyNode", positive=link("n6"))}, "a cat on a mat"),
    "circle": ({"n3": POSITIVE, "a": node("X", conditioning=link("b"), conditioning_2=link("n6")),
                "b": node("X", conditioning=link("a"))}, "a cat on a mat"),
    "numbers": ({"n3": node("KSampler", positive=[6, 0]), "6": node("CLIPTextEncode", text="six")}, "six"),
}  # fmt: skip


@pytest.mark.parametrize("case", WORKFLOWS)
def test_workflows(case: str) -> None:
    changes, expected = WORKFLOWS[case]
    assert embedded_prompt(png({"prompt": json.dumps(nodes(**changes)), "workflow": "{}"})) == expected


# ------------------------------------------------------------------------------------------------------------ no prompt

BAD_NOTES: dict[str, tuple[dict[str, str], str]] = {
    "none": ({"Software": "x"}, "no generator has noted one in the image"),
    "empty": ({"parameters": f"Negative prompt: x\n{SETTINGS}"}, "the note 'parameters' has an empty one"),
    "json without": ({"parameters": '{"seed": 1}'}, "the note 'parameters' is of no known form"),
    "json of another": ({"parameters": '{"prompt": ["a"]}'}, "the note 'parameters' is of no known form"),
    "deep": ({"prompt": '{"a":' * 50_000}, "the note 'prompt' is of no known form"),
    "cut": ({"prompt": '{"3": {'}, "the note 'prompt' is of no known form"),
    "no nodes": ({"prompt": '{"3": 1}'}, "the note 'prompt': its workflow encodes no text"),
    "long": ({"prompt": " " * 4_000_001}, "the note 'prompt': it has more than 4,000,000 characters"),
    "invoke": ({"invokeai_metadata": "[]"}, "the note 'invokeai_metadata' is of no known form"),
    "invoke without": ({"invokeai_metadata": '{"seed": 1}'}, "the note 'invokeai_metadata' is of no known form"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_NOTES)
def test_notes_without_a_prompt(case: str) -> None:
    notes, expected = BAD_NOTES[case]
    with pytest.raises(DataError) as caught:
        embedded_prompt(png(notes))
    assert expected in str(caught.value) and "\n" not in str(caught.value)


BAD_WORKFLOWS: dict[str, tuple[dict[str, Any], str]] = {
    "no sampler": ({"n3": {}}, "its workflow encodes no text"),
    "two": ({"b": node("KSampler", positive=link("n7"))}, "its workflow has 2 different ones"),
    "computed": ({"n6": node("CLIPTextEncode", text=link("s")), "s": node("Concatenate", string="a", text="b")},
                 "its workflow computes it"),
    "text circle": ({"n6": node("CLIPTextEncode", text=link("n6"))}, "its workflow computes it"),
    "text elsewhere": ({"n6": node("CLIPTextEncode", text=link("gone"))}, "its workflow computes it"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_WORKFLOWS)
def test_workflows_without_a_prompt(case: str) -> None:
    changes, expected = BAD_WORKFLOWS[case]
    with pytest.raises(DataError, match=f"the note 'prompt': {expected}"):
        embedded_prompt(png({"prompt": json.dumps(nodes(**changes))}))


@pytest.mark.parametrize("content", [b"", b"<html>", png({"parameters": "x"})[:60], with_exif("jpeg", b"x")[:30]])
def test_what_is_no_image(content: bytes) -> None:
    with pytest.raises(DataError, match="the image cannot be read: "):
        embedded_prompt(content)


def layered(width: int, depth: int) -> str:
    """Returns a workflow of samplers that all lead through layers of nodes, each of which leads to all of the next."""
    links = {
        f"{i}.{j}": {f"cond{k}": link(f"{i + 1}.{k}") for k in range(width)} for i in range(depth) for j in range(width)
    }
    samplers = {f"s{i}": node("KSampler", positive=link(f"0.{i % width}")) for i in range(2000)}
    return json.dumps({name: node("X", **inputs) for name, inputs in links.items()} | samplers)


@pytest.mark.parametrize(("width", "depth"), [(40, 40), (2, 5000), (15_000, 0)])
def test_a_workflow_takes_bounded_time(width: int, depth: int) -> None:
    workflow = json.loads(layered(width, depth)) if depth else json.loads(layered(1, 1))
    workflow["0.0"]["inputs"] |= {f"cond{k}": link("gone") for k in range(0 if depth else width)}
    content, started = png({"prompt": json.dumps(workflow)}), time.perf_counter()
    with pytest.raises(DataError, match="the note 'prompt'(: its workflow is too large| is of no known form)"):
        embedded_prompt(content)
    assert time.perf_counter() - started < 5


def test_rows_get_the_prompts_of_their_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png({"parameters": PARAMETERS}))
    (tmp_path / "b.png").write_bytes(png({}))
    (tmp_path / "c.jpg").write_bytes(b"<html>")
    rows = rows_of(tmp_path, prompts="embedded")
    assert brief(rows) == [
        ("a.png", "a cat, (red hat:1.2) <lora:x:1>\non a mat", ""),
        ("b.png", None, "no prompt: no generator has noted one in the image"),
        ("c.jpg", None, f"no prompt: the image cannot be read: cannot identify image file '{tmp_path}/c.jpg'"),
    ]
    (tmp_path / "t.csv").write_text("image,prompt\ngone.png,old\n")
    [row] = rows_of(tmp_path / "t.csv", prompts="embedded")
    assert row.problem == "no prompt: the image cannot be read: No such file or directory" and row.carried == ("old",)


ids = st.sampled_from(["1", "2", "3", 1, 2, None, ["1"]])
values = st.one_of(
    st.text(max_size=3), st.tuples(ids, st.integers(0, 2)).map(list), st.none(), st.lists(ids, max_size=2)
)
names = st.sampled_from(["positive", "guider", "conditioning", "text", "value", "", "prompt", "image", "inputs"])
graphs = st.dictionaries(
    st.sampled_from(["1", "2", "3", "image", "prompt", "positive_prompt", "sui_image_params"]),
    st.one_of(values, st.fixed_dictionaries({"class_type": st.sampled_from(["KSampler", "CLIPTextEncode", 7]),
                                            "inputs": st.dictionaries(names, values, max_size=3) | values})),
    max_size=4,
)  # fmt: skip


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(["parameters", "prompt", "invokeai_metadata"]),
    text=graphs.map(json.dumps) | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30),
)
def test_any_note_has_a_prompt_or_a_reason(name: str, text: str) -> None:
    with contextlib.suppress(DataError):
        assert embedded_prompt(png({name: text})).strip()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(comment=st.binary(max_size=40) | st.binary(max_size=40).map(lambda end: b"UNICODE\0" + end),
       at=st.integers(0, 300), new=st.binary(max_size=4))  # fmt: skip
def test_any_exif_has_a_prompt_or_a_reason(comment: bytes, at: int, new: bytes) -> None:
    content = with_exif("jpeg", comment)
    for spoilt in (content, content[:at] + new + content[at + len(new) :]):
        with contextlib.suppress(DataError):
            assert embedded_prompt(spoilt).strip()
