from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import error_of, refused
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import ipiqa
from ipiqa.config.loading import Config, load_config, parse_override
from ipiqa.config.settings import RunConfig, SplitConfig
from ipiqa.registry import flatten

PLAIN = """\
image_size: 64
model:
  name: ipiqa
  image_encoder: {name: clip_resnet, layers: [1, 1, 1, 1], width: 8, embed_dim: 16, weights: tiny.pt}
  prompt_encoder: {name: clip_text, width: 8, layers: 1, heads: 1, embed_dim: 16, weights: "${..image_encoder.weights}"}
  fusion: {name: cross_attention, heads: 4}
  head: {name: mlp, dropout: 0.1}
dataset: {name: agiqa_3k, annotations: data.csv, images: images}
run:
  output_dir: output/plain
  learning_rate: 1e-4
"""


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.yaml"
    path.write_text(PLAIN)
    return path


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


# ------------------------------------------------------------------------------------------------------- what is loaded


def test_everything_is_filled_in(plain: Path) -> None:
    config = load_config(str(plain))
    assert config.image_size == 64
    assert config.model["prompt_encoder"]["weights"] == "tiny.pt"  # ${..image_encoder.weights}
    assert config.run == RunConfig(output_dir="output/plain", learning_rate=0.0001)
    assert config.split == SplitConfig(kind="reference", seed=42, train_fraction=0.8)
    assert config.processor["name"] == "squash" and config.processor["flip"] == 0.5
    assert config.task == {"name": "quality_regression", "loss": "mse", "pairs": "batch"}


def test_numbers_without_a_dot_are_numbers(plain: Path) -> None:
    assert load_config(plain, "run.learning_rate=5e-4").run.learning_rate == 0.0005
    rate = load_config(plain, "run.weight_decay=1").run.weight_decay
    assert rate == 1.0 and isinstance(rate, float)


def test_the_public_names() -> None:
    assert ipiqa.load_config is load_config
    assert "ipiqa" in ipiqa.list_registered("model") and "squash" in ipiqa.list_registered("processor")


def test_shown_yaml_loads_to_an_equal_config(plain: Path) -> None:
    config = load_config(plain, "run.clip_grad_norm=1", "dataset.targets=[alignment]", "run.checkpoint=a/b.pt")
    assert load_config(write(plain.parent, "shown.yaml", config.to_yaml())) == config


def test_config_is_frozen_and_its_dictionary_is_not_shared(plain: Path) -> None:
    config = load_config(plain)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.image_size = 32  # type: ignore[misc]
    config.to_dict()["processor"]["mean"].append(0.0)
    config.processor["std"].append(0.0)
    assert load_config(plain).processor["std"] != config.processor["std"]
    assert len(config.processor["mean"]) == 3


def test_home_is_expanded_in_every_path(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(plain.parent))
    paths = ["run.output_dir", "run.checkpoint", "dataset.annotations", "dataset.images", "dataset.cache_dir"]
    paths += ["model.image_encoder.weights", "model.prompt_encoder.weights"]
    config = load_config("~/plain.yaml", *(f"{path}=~/{path}" for path in paths))
    assert [value for value in flatten(config.to_dict()).values() if isinstance(value, str) and "~" in value] == []
    assert all(flatten(config.to_dict())[path] == f"{plain.parent}/{path}" for path in paths)
    assert load_config(write(plain.parent, "leaf.yaml", "base: ~/plain.yaml\n")) == load_config(plain)


def test_a_byte_order_mark_is_no_part_of_a_key(plain: Path) -> None:
    assert load_config(write(plain.parent, "notepad.yaml", "\ufeff" + PLAIN)) == load_config(plain)


# ----------------------------------------------------------------------------------------------------------------- base


def test_a_derived_file_changes_its_base(plain: Path) -> None:
    (plain.parent / "more").mkdir()
    write(plain.parent, "middle.yaml", "base: plain.yaml\nimage_size: 96\nrun: {max_epochs: 7}\n")
    leaf = write(plain.parent, "more/leaf.yaml", "base: ../middle.yaml\nrun: {max_epochs: 8}\n")
    config = load_config(leaf)
    assert (config.image_size, config.run.max_epochs, config.run.learning_rate) == (96, 8, 0.0001)
    assert config.model == load_config(plain).model


def test_interpolation_sees_the_changed_setting(plain: Path) -> None:
    config = load_config(plain, "model.image_encoder.weights=other.pt")
    assert config.model["prompt_encoder"]["weights"] == "other.pt"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: plian.yaml\n", "leaf.yaml: base: '{folder}/plian.yaml' does not exist. Did you mean 'plain.yaml'?"),
        ("base: .\n", "{folder}: cannot be read: Is a directory."),
        ("base: [plain.yaml]\n", "leaf.yaml: base: ['plain.yaml'] is not a file name. Give one relative to this file."),
        ("base: leaf.yaml\n", "leaf.yaml: base: leads in a circle (leaf.yaml -> leaf.yaml). Remove one of them."),
        ("base: circle.yaml\n", "circle.yaml: base: leads in a circle (leaf.yaml -> circle.yaml -> leaf.yaml)."),
    ],
)
def test_base_that_cannot_be_followed(plain: Path, text: str, message: str) -> None:
    write(plain.parent, "circle.yaml", "base: leaf.yaml\n")
    leaf = write(plain.parent, "leaf.yaml", text)
    assert message.format(folder=plain.parent) in refused(lambda: load_config(leaf))


# --------------------------------------------------------------------------------------------- another part by one line


@pytest.mark.parametrize("change", ["model.head.name=linear", "model.head=linear", "model.head={name: linear}"])
def test_settings_that_the_new_part_takes_too_are_kept(plain: Path, change: str) -> None:
    assert load_config(plain, change).model["head"] == {"name": "linear", "dropout": 0.1}


def test_a_mapping_that_is_a_value_is_replaced(plain: Path) -> None:
    write(plain.parent, "losses.yaml", "base: plain.yaml\ntask: {loss: {mse: 1, rank: 1}}\n")
    leaf = write(plain.parent, "leaf.yaml", "base: losses.yaml\ntask: {loss: {huber: 1}}\n")
    assert load_config(leaf).task["loss"] == {"huber": 1.0}
    assert load_config(leaf, "task.loss={l1: 2}").task["loss"] == {"l1": 2.0}
    assert load_config(leaf, "task.loss.mse=1", "task.loss.plcc=0.5").task["loss"] == {"mse": 1.0, "plcc": 0.5}
    assert load_config(leaf, "task.loss.mse=1", "task.loss={l1: 2}").task["loss"] == {"l1": 2.0}
    assert load_config(leaf, "task.loss.mse=1", "task.loss=l1", "task.loss.l1=3").task["loss"] == {"l1": 3.0}


def test_sections_given_as_mappings_are_merged(plain: Path) -> None:
    run = load_config(plain, "run.seed=3", "run={max_epochs: 2}").run
    assert (run.seed, run.max_epochs, run.learning_rate) == (3, 2, 1e-4)
    head = load_config(plain, "model.head=linear", "model={head: {dropout: 0.3}}").model["head"]
    assert head == {"name": "linear", "dropout": 0.3}


def test_settings_that_only_the_old_part_takes_are_dropped(plain: Path) -> None:
    assert load_config(plain, "model.fusion.name=concatenation").model["fusion"] == {"name": "concatenation"}
    assert set(load_config(plain, "model.name=image_only").model) == {"name", "image_encoder", "head"}
    leaf = write(plain.parent, "leaf.yaml", "base: plain.yaml\nmodel: {prompt_encoder: {name: clip}}\n")
    found = load_config(leaf).model["prompt_encoder"]  # image_encoder clip_resnet has a width as well: other kind
    assert found["weights"] == "tiny.pt" and "width" not in found


@pytest.mark.parametrize("order", [1, -1])
def test_settings_given_with_the_new_name_are_meant(plain: Path, order: int) -> None:
    both = ["dataset.name=table", "dataset.targets=[sharpness]"][::order]
    assert load_config(plain, *both).dataset["targets"] == ["sharpness"]
    both = ["model.fusion.name=concatenation", "model.fusion.heads=8"][::order]
    assert refused(lambda: load_config(plain, *both)) == "model.fusion.heads: no such setting. It takes: name."


def test_a_misspelt_setting_is_not_dropped_with_the_old_part(plain: Path) -> None:
    wrong = write(plain.parent, "wrong.yaml", PLAIN.replace("dropout", "dropuot"))
    assert "model.head.dropuot: no such setting." in refused(lambda: load_config(wrong, "model.head.name=linear"))


def test_sections_that_are_left_out_can_be_changed(plain: Path) -> None:
    config = load_config(plain, "processor.flip=0", "task.loss=l1", "split.kind=holdout", "split.seed=3")
    assert (config.processor["flip"], config.task["loss"]) == (0.0, "l1")
    assert config.split == SplitConfig(kind="holdout", seed=3)


def test_a_part_given_by_its_name_alone_takes_settings(plain: Path) -> None:
    short = write(plain.parent, "short.yaml", PLAIN.replace("{name: mlp, dropout: 0.1}", "mlp"))
    assert load_config(short, "model.head.dropout=0.3").model["head"] == {"name": "mlp", "dropout": 0.3}


def test_missing_file_names_the_near_miss(plain: Path) -> None:
    message = refused(lambda: load_config(plain.with_name("plane.yaml")))
    assert message.startswith(
        f"--cfg-path: '{plain.with_name('plane.yaml')}' does not exist. Did you mean 'plain.yaml'?"
    )
    assert "'nowhere/x.yaml' does not exist. A config has" in refused(lambda: load_config("nowhere/x.yaml"))


# --------------------------------------------------------------------------------------------------------- bad settings


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # sections
        ("modle.name=ipiqa", "modle: no such section. Did you mean 'model'? There are: image_size, model,"),
        ("train_fraction=0.5", "train_fraction: no such section. Did you mean 'split.train_fraction'?"),
        ("run=5", "run: 5 is not a mapping. Write its settings under it, indented."),
        ("image_size=null", "image_size: missing. Give the pixels of a side, from 1 to 2048, such as 224."),
        ("image_size=true", "image_size: True is out of range."),
        ("image_size=8192", "image_size: 8192 is out of range. Give the pixels of a side, from 1 to 2048"),
        # keys, names and types: more in test_registry
        ("run.max_epoch=3", "run.max_epoch: a key of the reference code. Here it is run.max_epochs."),
        ("model.promt_encoder.name=clip", "model.promt_encoder: no such setting. Did you mean 'prompt_encoder'?"),
        ("run.max_epochs.x=1", "run.max_epochs: {'x': 1} is not a whole number."),
        ("run.checkpoint=None", "run.checkpoint: 'None' is text. Write null for none."),
        ("run.output_dir=???", "run.output_dir: Missing mandatory value: output_dir. Write a value"),
        ("processor.std=[.inf, 1, 1]", "processor.std: [inf, 1, 1] is not a list (a number each)"),
        ("task.loss={mse: .nan}", "task.loss: {'mse': nan} is not text or a mapping (a number each). Give finite"),
        ("run.batch_size=1" + "0" * 60, "run.batch_size: 1" + "0" * 60 + " has more than 63 bits."),
        ("run.num_folds=20000", "run.num_folds: 20000 is out of range. Give a number in [1, 1000]."),
        ("dataset.images=a\udcff", "dataset.images: 'a\\udcff' is not UTF-8. Write a plain value, or"),
        ("dataset.images=a\0b", "dataset.images: 'a\\x00b' is not a path: it holds a NUL byte."),
        # the override itself
        ("run.max_epochs", "'run.max_epochs': not a setting. Write key=value with a dotted key, such as"),
        ("run..seed=5", "'run..seed=5': not a setting."),
        ("a." * 1000 + "b=5", "'a.a.a."),
        ("base=other.yaml", "'base=other.yaml': a file's base cannot be changed from outside. Give another"),
    ],
)  # fmt: skip
def test_bad_setting_is_refused_in_one_line(plain: Path, override: str, message: str) -> None:
    assert refused(lambda: load_config(plain, override)).startswith(message)


def test_settings_are_checked_against_each_other(plain: Path) -> None:
    assert refused(lambda: load_config(plain, "run.batch_size=0")).startswith("run.batch_size: 0 is out of range.")
    kfold = ["split.kind=kfold", "run.num_folds=1"]
    assert refused(lambda: load_config(plain, *kfold)).startswith("run.num_folds: 1 is out of range. split.kind kfold")
    assert load_config(plain, kfold[0], "run.num_folds=2").run.num_folds == 2
    assert load_config(plain, "run.num_folds=1").run.num_folds == 1
    nothing = refused(lambda: load_config(plain, "run.evaluate=true"))
    assert nothing.startswith("run.evaluate: there is nothing to evaluate.")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("model:", "model.name: missing. There are: clip_antonyms, clip_cosine, clip_levels, clip_linear,"),
        ("dataset:", "dataset.name: missing. There are: agiqa_1k, agiqa_3k, aigciqa2023, aigiqa_20k, avt_ai_images,"),
        ("  output_dir:", "run.output_dir: missing. Give a path."),
    ],
)
def test_what_must_be_given(plain: Path, line: str, message: str) -> None:
    rest = ("  name: ipiqa", "  image_encoder", "  prompt_encoder", "  fusion", "  head") if line == "model:" else ()
    lines = [text for text in PLAIN.splitlines() if not text.startswith((line, *rest))]
    short = write(plain.parent, "short.yaml", "\n".join(lines))
    assert refused(lambda: load_config(short)).startswith(message)


# ------------------------------------------------------------------------------------------------------------ overrides


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("1e-4", 0.0001),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", ""),
        ("[1, a, 2.5]", [1, "a", 2.5]),
        ("{name: mlp, dropout: 0.5}", {"name": "mlp", "dropout": 0.5}),
        ("'1'", "1"),
        ('"a b"', "a b"),
        (" padded ", "padded"),
        ("a=b", "a=b"),
        ("out #3", "out #3"),
        ("#3", "#3"),
        ("a: b", "a: b"),
        ("C:\\images", "C:\\images"),
        ("[open", "[open"),
        ("*anchor", "*anchor"),
        ("!!python/name:os.system", "!!python/name:os.system"),
        ("x\nrun: 3", "x\nrun: 3"),
        ("2026-01-31", "2026-01-31"),
        ("None", "None"),
    ],
)
def test_values_are_read_as_yaml(text: str, value: object) -> None:
    key, found = parse_override(f"run.key={text}")
    assert key == "run.key" and found == value and type(found) is type(value)


words = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs"), exclude_characters="$"))
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc_", min_size=1), inner, max_size=4),
    max_leaves=8,
)
keys = st.lists(st.text("abcdefghij_0123456789", min_size=1), min_size=1, max_size=4).map(".".join)


@given(keys, values)
@example("run.x", 1e22)
def test_every_value_written_as_json_comes_back(key: str, value: Any) -> None:
    found_key, found = parse_override(f"{key}={json.dumps(value, ensure_ascii=False)}")
    assert found_key == key
    assert found == value and type(found) is type(value)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.text() | st.text().map("run.key=".__add__))
@example("a=\x00")
@example("a=${")
@example("a=" + "[" * 100_000)
@example("run.seed=&a [*a]")
@example("run.seed=" + "9" * 5000)
@example("a." * 100_000 + "a=1")
def test_any_text_is_an_override_or_refused_in_one_line(text: str) -> None:
    assert len(error_of(lambda: parse_override(text))) < 300


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1).filter(str.strip))
@example("a ${b} \\${c} \\\\ \\\\${d}")
@example("1e-5")
@example("null")
@example("a: b #c")
@example("'")
@example("${oc.env:HOME}")
def test_any_text_survives_the_round_trip(plain: Path, text: str) -> None:
    config = load_config(plain)
    changed = dataclasses.replace(config, dataset={**config.dataset, "targets": [text, "b"]})
    assert _reloaded(plain.parent, changed) == changed


def _reloaded(folder: Path, config: Config) -> Config:
    return load_config(write(folder, "again.yaml", config.to_yaml()))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.floats(0, 1e6, exclude_min=True),
    st.floats(1e-9, 0.999),
    st.sampled_from(["holdout", "kfold", "image_random"]),
)
def test_an_override_is_the_same_as_a_line_in_the_file(
    plain: Path, seed: int, rate: float, fraction: float, kind: str
) -> None:
    changes = {"run.seed": seed, "run.learning_rate": rate, "split.train_fraction": fraction, "split.kind": kind}
    config = load_config(plain, *(f"{key}={value}" for key, value in changes.items()))
    text = f"base: plain.yaml\nrun: {{seed: {seed}, learning_rate: {rate}}}\n"
    text += f"split: {{train_fraction: {fraction}, kind: {kind}}}\n"
    assert config == load_config(write(plain.parent, "leaf.yaml", text))
    assert config.run.learning_rate == rate and config.split.train_fraction == fraction
