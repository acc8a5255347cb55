from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest
from conftest import refused

from ipiqa import registry
from ipiqa.errors import shorten
from ipiqa.registry import (
    FilePath,
    build,
    check_settings,
    describe_type,
    keys_of,
    list_registered,
    register,
    resolve,
)


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of its own for each test: two towers, a fusion, a head, a model of them, a task."""
    monkeypatch.setattr(registry, "_PARTS", {kind: {} for kind in registry.KINDS})
    register("image_encoder", "tower")(Tower)
    register("prompt_encoder", "words")(Words)
    register("fusion", "sum")(Sum)
    register("head", "flat")(Flat)
    register("model", "whole")(Whole)
    register("task", "everything")(Everything)


class Tower:
    def __init__(self, image_size: int, *, width: int = 8, freeze: Literal["none", "all"] = "none") -> None:
        self.image_size, self.width, self.num_features, self.freeze = image_size, width, width, freeze


class Words:
    def __init__(self, *, length: int) -> None:
        self.length = length


class Sum:
    def __init__(self, image_encoder: Tower, prompt_encoder: Words) -> None:
        self.num_features = image_encoder.width + prompt_encoder.length


class Flat:
    def __init__(self, num_features: int, num_targets: int, *, dropout: float = 0.5) -> None:
        self.shape, self.dropout = (num_features, num_targets), dropout


class Whole:
    def __init__(self, image_encoder: Tower, prompt_encoder: Words, fusion: Sum, head: Flat) -> None:
        self.image_encoder, self.prompt_encoder, self.fusion, self.head = image_encoder, prompt_encoder, fusion, head


@dataclass(frozen=True, kw_only=True)
class Everything:
    """One setting of every type there may be."""

    whole: int = 1
    number: float = 1.0
    text: str = "a"
    flag: bool = False
    choice: Literal["mse", "huber"] = "mse"
    maybe: float | None = None
    maybe_text: str | None = None
    maybe_choice: Literal["mean", "keep"] | None = None
    numbers: list[float] | None = None
    anything: Any = None
    mapping: dict[str, float] | None = None
    path: FilePath | None = None
    paths: list[FilePath] | FilePath = "a"


SECTION = {"name": "whole", "image_encoder": "tower", "prompt_encoder": {"name": "words", "length": 3}, "fusion": "sum"}


def test_resolve_fills_every_default_and_builds_nothing() -> None:
    assert resolve("model", {**SECTION, "head": {"name": "flat", "dropout": 0}}, "model") == {
        "name": "whole",
        "image_encoder": {"name": "tower", "width": 8, "freeze": "none"},
        "prompt_encoder": {"name": "words", "length": 3},
        "fusion": {"name": "sum"},
        "head": {"name": "flat", "dropout": 0.0},
    }


def test_what_resolve_returns_resolves_to_itself() -> None:
    once = resolve("model", {**SECTION, "head": "flat"}, "model")
    assert resolve("model", once, "model") == once


def test_build_hands_siblings_and_context_on() -> None:
    section = resolve("model", {**SECTION, "head": "flat"}, "model")
    model = build("model", section, "model", {"image_size": 64, "num_targets": 2})
    assert model.image_encoder.image_size == 64
    assert model.fusion.num_features == 8 + 3
    assert model.head.shape == (11, 2)  # of the fusion, which is younger than the image encoder


def test_build_without_context_is_our_mistake_not_the_users() -> None:
    with pytest.raises(TypeError, match="needs 'image_size'"):
        build("image_encoder", {"name": "tower", "width": 8, "freeze": "none"}, "image_encoder", {})


def test_names_are_listed_and_kinds_are_closed() -> None:
    register("head", "deep")(type("Deep", (), {}))
    assert list_registered("head") == ["deep", "flat"]
    assert refused(lambda: list_registered("haed")).startswith("haed: no such kind of part. Did you mean 'head'?")


def test_keys_of_a_part_are_its_nested_parts_and_settings() -> None:
    assert keys_of("model", "whole") == ["image_encoder", "prompt_encoder", "fusion", "head"]
    assert keys_of("fusion", "sum") == []  # the encoders are handed to it, not written under it
    assert keys_of("head", "flat") == ["dropout"]


def test_a_name_belongs_to_one_part() -> None:
    register("head", "flat")(Flat)  # as when a module is loaded again
    for module, name in (("elsewhere", "Flat"), (Flat.__module__, "Other")):
        other = type(name, (), {"__module__": module})
        with pytest.raises(
            ValueError, match=f"head 'flat' is registered twice: test_registry.Flat and {module}.{name}"
        ):
            register("head", "flat")(other)
    assert registry.lookup("head", "flat", "head") is Flat


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("flta", "x.name: no head is called 'flta'. Did you mean 'flat'? There are: flat."),
        ({"name": ["flat"]}, "x.name: no head is called ['flat']. Did you mean 'flat'? There are: flat."),
        ({"dropout": 0.1}, "x.name: missing. There are: flat."),
        (None, "x: None is not a mapping. Write name: and the settings of the head under it."),
        (
            {"name": "flat", "dropuot": 0.1},
            "x.dropuot: no such setting. Did you mean 'dropout'? It takes: name, dropout.",
        ),
        ({"name": "flat", "num_targets": 2}, "x.num_targets: no such setting. It takes: name, dropout."),
        ({"name": "flat", "dropout": True}, "x.dropout: True is not a number."),
    ],
)
def test_wrong_section_is_refused_in_one_line(section: object, message: str) -> None:
    assert refused(lambda: resolve("head", section, "x")) == message


def test_nested_parts_are_named_with_their_place() -> None:
    assert refused(lambda: resolve("model", SECTION, "model")) == "model.head: missing. There are: flat."
    wrong = {**SECTION, "head": {"name": "flat", "dropout": []}}
    assert refused(lambda: resolve("model", wrong, "model")) == "model.head.dropout: [] is not a number."
    extra = {**SECTION, "head": "flat", "haed": "flat"}
    assert refused(lambda: resolve("model", extra, "model")).startswith(
        "model.haed: no such setting. Did you mean 'head'? It takes: name, image_encoder,"
    )
    short = {**SECTION, "head": "flat", "prompt_encoder": "words"}
    assert refused(lambda: resolve("model", short, "model")) == (
        "model.prompt_encoder.length: missing. Give a whole number."
    )


@pytest.mark.parametrize(
    ("key", "given", "kept"),
    [
        ("number", 3, 3.0),
        ("maybe", 3, 3.0),
        ("maybe", None, None),
        ("numbers", [1, 2.5], [1.0, 2.5]),
        ("numbers", (1,), [1.0]),
        ("choice", "huber", "huber"),
        ("maybe_choice", None, None),
        ("anything", {"a": [1]}, {"a": [1]}),
        ("mapping", {"a": 1}, {"a": 1.0}),
        ("path", "~/a", "/elsewhere/a"),
        ("paths", ["~/a", "b~"], ["/elsewhere/a", "b~"]),
        ("paths", "~/{0..9}/*.tar", "/elsewhere/{0..9}/*.tar"),
        ("text", "~/a", "~/a"),
        ("maybe_text", "null", "null"),
    ],
)
def test_values_are_kept_numbers_widened_and_paths_expanded(
    key: str, given: object, kept: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/elsewhere")
    value = check_settings(Everything, {key: given}, "x")[key]
    assert repr(value) == repr(kept)


@pytest.mark.parametrize(
    ("key", "given", "message"),
    [
        ("whole", 1.5, "1.5 is not a whole number."),
        ("whole", True, "True is not a whole number."),
        ("whole", "1", "'1' is not a whole number."),
        ("number", None, "None is not a number."),
        ("text", 5, "5 is not text."),
        ("flag", 1, "1 is not true or false."),
        ("flag", "true", "'true' is not true or false."),
        ("choice", "hubert", "'hubert' is not one of mse, huber. Did you mean 'huber'?"),
        ("choice", None, "None is not one of mse, huber."),
        ("maybe_choice", "meen", "'meen' is not one of mean, keep or null. Did you mean 'mean'?"),
        ("maybe", "x", "'x' is not a number or null."),
        ("maybe", "None", "'None' is text. Write null for none."),
        ("maybe_text", "None", "'None' is text. Write null for none."),
        ("numbers", [1, "x"], "[1, 'x'] is not a list (a number each) or null."),
        ("numbers", 1, "1 is not a list (a number each) or null."),
        ("mapping", [1], "[1] is not a mapping (a number each) or null."),
        ("mapping", {"a": "b"}, "{'a': 'b'} is not a mapping (a number each) or null."),
        ("mapping", {1: 1}, "{1: 1} is not a mapping (a number each) or null."),
        ("number", float("nan"), "nan is not a number. Give finite numbers."),
        ("maybe", float("-inf"), "-inf is not a number or null. Give finite numbers."),
        ("numbers", [1.0, float("inf")], "[1.0, inf] is not a list (a number each) or null. Give finite numbers."),
        ("mapping", {"a": float("inf")}, "{'a': inf} is not a mapping (a number each) or null. Give finite numbers."),
        ("path", "a\0b", "'a\\x00b' is not a path: it holds a NUL byte. Give the path of a file or folder."),
        ("paths", ["a", "b\udcff"], "'b\\udcff' is not a path: it is not UTF-8. Give the path of a file or folder."),
        ("path", 5, "5 is not a path or null."),
    ],
)
def test_wrong_type_is_refused_in_one_line(key: str, given: object, message: str) -> None:
    assert refused(lambda: check_settings(Everything, {key: given}, "x")) == f"x.{key}: {message}"


def test_long_values_are_cut_in_messages() -> None:
    name = "é" * 5000
    message = refused(lambda: check_settings(Everything, {"path": name}, "x"))
    assert message.startswith("x.path: 'éé") and ": a name in it has more than 255 bytes." in message
    assert len(message) < 300 and "(5002 characters)" in message
    assert "Overflow" not in refused(lambda: check_settings(Everything, {"number": 10**400}, "x"))
    assert shorten("a") == "'a'"


def test_an_unknown_setting_is_refused_with_all_there_are() -> None:
    assert refused(lambda: check_settings(Everything, {"numbr": 1}, "x")).startswith(
        "x.numbr: no such setting. Did you mean 'number'? It takes: whole, number, text,"
    )


def test_a_list_given_by_default_is_not_shared() -> None:
    class Listed:
        def __init__(self, *, sizes: list[int] = [1, 2]) -> None:  # noqa: B006
            self.sizes = sizes

    check_settings(Listed, {}, "x")["sizes"].append(3)
    assert check_settings(Listed, {}, "x") == {"sizes": [1, 2]}


def test_types_in_words() -> None:
    words = {
        list: "a list",
        dict: "a mapping",
        list[int]: "a list (a whole number each)",
        int | None: "a whole number or null",
    }
    assert {t: describe_type(t) for t in words} == words
