from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import conftest
import pytest
import yaml
from conftest import REPOSITORY

from ipiqa.config.loading import load_config
from ipiqa.config.reference import KEYS, is_reference_format, translate, with_other_name
from ipiqa.errors import ConfigError

# A file of the form that was published, every key in it.
AGIQA_3K = """\
model:
  arch: "ipiqa"
  base_ckpt: cache/ckpt/clip/openai/resnet/RN50.pt
  input_resolution: 512
  output_dim: 2
  load_finetuned: False
  finetuned:
  head_scale: 10.
  use_mlp_head: True
  dropout_rate: 0.5
  freeze_text: True
  qa_token: True
dataset:
  data_path: "cache/data/aigc_qa_3k/mos_joint.xlsx"
  vis_root: "cache/data/aigc_qa_3k/AGIQA-3K/"
  transform_train:
    name: image_train_processor
    cfg:
      image_size: 512
  transform_val:
    name: image_eval_processor
    cfg:
      image_size: 512
run:
  task: agiqa_doublescore
  resume_ckpt_path: null
  lr_sched: constant_lr
  lr_decay_rate: null
  warmup_lr: -1
  warmup_steps: 0
  min_lr: 1e-5
  init_lr: 1e-5
  lr_layer_decay: 1
  weight_decay: 0
  beta2: 0.999
  batch_size: 32
  batch_size_val: 32
  num_worker: 8
  max_epoch: 100
  log_freq: 50
  accum_grad_iters: 1
  grad_norm_clip: null
  output_dir: "output/agiqa3k/ipiqa"
  evaluate: False
  eval_freq: 1
  save_freq: 100
  amp: False
  device: "cuda"
  distributed: True
  dist_url: "env://"
"""
SECTIONS: dict[str, dict[str, Any]] = yaml.safe_load(AGIQA_3K)

# What each key becomes when it has another value than in the published file.
CHANGED = [
    ("model.base_ckpt", "other.pt",
     {"model.image_encoder.weights": "other.pt", "model.prompt_encoder.weights": "other.pt"}),
    ("model.head_scale", 3, {"run.head_learning_rate_scale": 3.0}),
    ("model.use_mlp_head", False, {"model.head.name": "linear"}),
    ("model.dropout_rate", 0.1, {"model.head.dropout": 0.1}),
    ("model.freeze_text", False, {"model.prompt_encoder.freeze": "none"}),
    ("model.qa_token", False, {"model.prompt_encoder.train_embeddings": False}),
    ("dataset.data_path", "a.csv", {"dataset.annotations": "a.csv"}),
    ("dataset.vis_root", "images", {"dataset.images": "images"}),
    ("run.resume_ckpt_path", "best.pth", {"run.checkpoint": "best.pth"}),
    ("run.lr_sched", "linear_warmup_cosine_lr", {"run.schedule": "linear_warmup_cosine_lr"}),
    ("run.lr_sched", "linear_warmup_cosine_lr_step-wise", {"run.schedule": "linear_warmup_cosine_lr_step-wise"}),
    ("run.lr_decay_rate", 0.9, {"run.learning_rate_decay": 0.9}),
    ("run.warmup_lr", 1e-8, {"run.warmup_learning_rate": 1e-8}),
    ("run.warmup_steps", 7, {"run.warmup_steps": 7}),
    ("run.min_lr", 0, {"run.min_learning_rate": 0.0}),
    ("run.init_lr", 1e-4, {"run.learning_rate": 1e-4}),
    ("run.lr_layer_decay", 0.8, {"run.layer_decay": 0.8}),
    ("run.weight_decay", 0.05, {"run.weight_decay": 0.05}),
    ("run.beta2", 0.99, {"run.beta2": 0.99}),
    ("run.batch_size", 4, {"run.batch_size": 4}),
    ("run.batch_size_val", 5, {"run.eval_batch_size": 5}),
    ("run.num_worker", 2, {"run.num_workers": 2}),
    ("run.max_epoch", 3, {"run.max_epochs": 3}),
    ("run.log_freq", 9, {"run.log_every": 9}),
    ("run.accum_grad_iters", 2, {"run.accumulate_steps": 2}),
    ("run.grad_norm_clip", 1, {"run.clip_grad_norm": 1.0}),
    ("run.output_dir", "out", {"run.output_dir": "out"}),
    ("run.eval_freq", 5, {"run.eval_every": 5}),
    ("run.seed", 7, {"run.seed": 7}),
    ("run.device", "cpu", {"run.device": "cpu"}),
    ("run.amp", True, {"run.amp": "bf16"}),  # without a GPU
    # read, and told in a note
    ("run.save_freq", 1, {}),
    ("run.distributed", False, {}),
    ("run.dist_url", "env://", {}),
    ("model.arch", "IP-IQA", {}),
    ("model.finetuned", "not_loaded.pth", {}),
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def write(folder: Path, changes: dict[str, Any], name: str = "reference.yaml") -> Path:
    """Writes the published file with some values changed (None as value takes the key out) and returns its path."""
    sections = copy.deepcopy(SECTIONS)
    for key, value in changes.items():
        node = sections
        *inner, last = key.split(".")
        for part in inner:
            node = node.setdefault(part, {})
        if value is None:
            del node[last]
        else:
            node[last] = value
    (folder / name).write_text(yaml.safe_dump(sections))
    return folder / name


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in settings.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out


def differences(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    one, two = flat(one), flat(two)
    return {key: two[key] for key in two if one.get(key) != two[key]}


def refused(path: Path, *overrides: str) -> str:
    return conftest.refused(lambda: load_config(path, *overrides))


@pytest.mark.parametrize("size", [224, 512])
@pytest.mark.parametrize("project", ["agiqa1k", "agiqa3k"])
def test_the_published_form_loads_as_our_own_project(project: str, size: int, tmp_path: Path) -> None:
    name = "ipiqa" if size == 512 else "ipiqa_224"
    text = AGIQA_3K.replace("512", str(size)).replace("output/agiqa3k/ipiqa", f"output/{project}/{name}")
    expected = {
        "dataset.annotations": "cache/data/aigc_qa_3k/mos_joint.xlsx",
        "dataset.images": "cache/data/aigc_qa_3k/AGIQA-3K/",
        "run.num_workers": 8,
        "run.min_learning_rate": 1e-5,  # which constant_lr does not read
    }
    if project == "agiqa1k":
        table = "cache/data/aigc_QA_data1/AGIQA-1k-Database-main/AIGC_MOS_Zscore.xlsx"
        text = text.replace(expected.pop("dataset.annotations"), table).replace("aigc_qa_3k/AGIQA-3K", "1k")
        text = text.replace("agiqa_doublescore", "agiqa").replace("output_dim: 2", "output_dim: 1")
        expected["dataset.images"] = "cache/data/1k/"
    (tmp_path / "reference.yaml").write_text(text)
    theirs = load_config(tmp_path / "reference.yaml")
    ours = load_config(REPOSITORY / f"ipiqa/projects/{project}/{name}.yaml")
    assert differences(ours.to_dict(), theirs.to_dict()) == expected
    assert type(theirs.run.weight_decay) is float and type(theirs.run.layer_decay) is float  # written 0 and 1


@pytest.mark.parametrize(("key", "value", "expected"), CHANGED)
def test_every_key_does_what_it_says(key: str, value: Any, expected: dict[str, Any], tmp_path: Path) -> None:
    assert key in KEYS
    before = load_config(write(tmp_path, {})).to_dict()
    after = load_config(write(tmp_path, {key: value})).to_dict()
    found = differences(before, after)
    # a value that ours has by default is no difference
    assert {k: flat(after)[k] for k in expected} == expected
    assert set(found) <= set(expected)


def test_no_key_is_ignored_silently(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="ipiqa")

    def result(section: str, content: dict[str, Any]) -> Any:
        caplog.clear()
        try:
            return translate({**SECTIONS, section: content}, "x.yaml"), caplog.messages
        except ConfigError as error:
            return str(error)

    for key in KEYS:
        section, name = key.split(".")
        published = SECTIONS[section]
        value = published.get(name)
        other = {bool: not value, int: 7, float: 0.7, dict: {"name": "x"}}.get(type(value), "other")
        assert result(section, {**published, name: other}) != result(section, published), key
        without = result(section, {k: v for k, v in published.items() if k != name})
        assert not isinstance(without, str) or without.startswith(f"{key}: missing.")
        if key in ("model.freeze_text", "model.use_mlp_head", "model.arch", "run.device", "run.amp", "run.dist_url"):
            assert without[0] == result(section, published)[0]


def test_every_key_is_tried_here() -> None:
    elsewhere = {
        "run.task", "run.evaluate", "model.output_dim", "model.input_resolution", "model.load_finetuned",
        "dataset.transform_train", "dataset.transform_val",
    }  # fmt: skip
    assert {key for key, _, _ in CHANGED} | elsewhere == set(KEYS)
    assert set(flat({s: dict.fromkeys(keys) for s, keys in SECTIONS.items()})) | {"run.seed"} == set(KEYS)


def test_all_three_resolutions_are_one(tmp_path: Path) -> None:
    size = {"image_size": 224}
    changes = {"model.input_resolution": 224, "dataset.transform_train.cfg": size, "dataset.transform_val.cfg": size}
    assert load_config(write(tmp_path, changes)).image_size == 224
    transforms = {"model.input_resolution": 224, "dataset.transform_train": None, "dataset.transform_val": None}
    assert load_config(write(tmp_path, transforms)).image_size == 224


def test_a_checkpoint_to_evaluate(tmp_path: Path) -> None:
    changes = {"model.load_finetuned": True, "model.finetuned": "best.pth", "run.evaluate": True}
    run = load_config(write(tmp_path, changes)).run
    assert run.evaluate and run.checkpoint == "best.pth"


def test_our_table_is_read_where_theirs_was_not_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    changes = {"dataset.data_path": f"{tmp_path}/mos_joint.xlsx"}
    path = write(tmp_path, changes)
    assert load_config(path).dataset["annotations"] == f"{tmp_path}/mos_joint.xlsx"  # neither is there
    (tmp_path / "data.csv").touch()
    with caplog.at_level(logging.INFO, logger="ipiqa"):
        assert load_config(path).dataset["annotations"] == f"{tmp_path}/data.csv"
    assert f"read '{tmp_path}/data.csv', since '{tmp_path}/mos_joint.xlsx' is not there" in caplog.text
    other = write(tmp_path, {"dataset.data_path": f"{tmp_path}/mos_other.xlsx"})
    assert load_config(other).dataset["annotations"] == f"{tmp_path}/mos_other.xlsx"  # who knows what is in it
    (tmp_path / "mos_joint.xlsx").touch()
    assert load_config(write(tmp_path, changes)).dataset["annotations"] == f"{tmp_path}/mos_joint.xlsx"


@pytest.mark.parametrize(
    ("changes", "level", "note"),
    [
        ({}, "INFO", "model.arch as model.name, model.base_ckpt as model.image_encoder.weights"),
        ({}, "INFO", "dataset.transform_train as processor"),
        ({}, "INFO", "run.init_lr as run.learning_rate"),
        ({}, "INFO", "run.save_freq: 100, but last.pt is saved each epoch"),
        ({}, "INFO", "run.distributed: the number of processes is that of torchrun"),
        ({}, "WARNING", "run.device: 'cuda', but PyTorch sees no GPU; read as auto, which takes the CPU"),
        ({"run.device": "cuda:1"}, "WARNING", "run.device: 'cuda:1', but PyTorch sees no GPU"),
        ({"run.amp": True}, "INFO", "read run.amp true as bf16; fp16 needs a GPU"),
        ({"model.finetuned": "x.pth"}, "INFO", "model.finetuned: 'x.pth' is not loaded, because model.load_finetuned"),
        ({"model.finetuned": "x.pth", "model.load_finetuned": True}, "INFO", "read model.finetuned as run.checkpoint"),
        ({"run.resume_ckpt_path": "x.pth"}, "INFO", "an interrupted run is continued with --resume instead"),
        ({"run.warmup_steps": 9, "run.lr_decay_rate": 1}, "INFO", "run.lr_decay_rate: constant_lr does not use it"),
    ],
)
def test_what_was_read_is_logged(
    changes: dict[str, Any], level: str, note: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, changes)
    with caplog.at_level(logging.INFO, logger="ipiqa"):
        load_config(path)
    messages = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert any(found == level and text.startswith(f"{path}: ") and note in text for found, text in messages), messages


def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", logger="ipiqa")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    sections = copy.deepcopy(SECTIONS)
    sections["run"]["amp"] = True
    for device, ours, warning in (
        ("cuda", "auto fp16", ""),
        ("cpu", "cpu bf16", ""),
        ("cuda:1", "auto fp16", "CUDA_V"),
    ):
        sections["run"]["device"] = device
        found = translate(sections, "x.yaml")
        assert f"{found['run.device']} {found['run.amp']}" == ours and warning in caplog.text
        assert bool(caplog.text) == bool(warning)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run.max_epochs": 3}, "run.max_epochs: the reference code has no such key. Did you mean 'run.max_epoch'? It"),
        ({"model.use_mlp": True}, "model.use_mlp: the reference code has no such key. Did you mean 'model.use_mlp_"),
        ({"datasets.x": 1}, "datasets.x: the reference code has no such key. Did you mean 'dataset'? It has: model,"),
        ({"dataset": ["a"]}, "dataset: the reference code has no such key. Did you mean"),
        ({"model.arch": "clipiqa"}, "model.arch: 'clipiqa' is invalid. Did you mean 'ipiqa'? Give ipiqa."),
        ({"model.base_ckpt": None}, "model.base_ckpt: missing. The reference code needs it too; here it is"),
        ({"model.input_resolution": 224}, "dataset.transform_train: {"),
        ({"dataset.transform_val.cfg.image_size": 224}, "dataset.transform_val: {"),
        ({"dataset.transform_train": "squash"}, "dataset.transform_train: 'squash' does not go with the rest. Write {"),
        ({"dataset.transform_train.crop": 1}, "dataset.transform_train: {"),
        ({"dataset.transform_train.cfg.scale": 1}, "dataset.transform_train: {'cfg': {'image_size': 512, 'scale': 1}"),
        ({"run.task": "agiqa3k"}, "run.task: 'agiqa3k' is invalid. Did you mean 'agiqa'? Give agiqa or"),
        ({"run.task": "agiqa"}, "model.output_dim: 2 does not go with run.task agiqa. Set it to 1."),
        ({"model.load_finetuned": True}, "model.load_finetuned: true does not go with model.finetuned None and"),
        (
            {"model.load_finetuned": True, "model.finetuned": "a.pth", "run.resume_ckpt_path": "b.pth"},
            "model.load_finetuned: true does not go with model.finetuned 'a.pth' and",
        ),
        ({"model.freeze_text": "yes"}, "model.freeze_text: 'yes' is not true or false."),
        ({"run.device": "tpu"}, "run.device: 'tpu' is invalid. Did you mean 'cpu'? Give cuda or cpu."),
        ({"run.dist_url": "tcp://a:1"}, "run.dist_url: 'tcp://a:1' is invalid. Give env://, where torchrun"),
        ({"run.save_freq": 0}, "run.save_freq: 0 is invalid. Give a number of epochs from 1."),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_in_one_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path, changes)
    assert refused(path).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run.init_lr": "fast"}, "run.learning_rate: 'fast' is not a number. In the file it is run.init_lr."),
        ({"run.output_dir": None}, "run.output_dir: missing. Give a path."),
        ({"run.evaluate": True}, "run.evaluate: there is nothing to evaluate."),
        ({"run.lr_sched": "linear_warmup_step_lr"}, "run.learning_rate_decay: missing."),
        ({"run.lr_sched": "cosine_lr"}, "run.schedule: 'cosine_lr' is not one of constant_lr,"),
    ],
)
def test_values_out_of_range_are_refused_with_both_names(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert refused(write(tmp_path, changes)).startswith(message)


def test_interpolation_within_their_names(tmp_path: Path) -> None:
    path = write(tmp_path, {"run.batch_size_val": "${run.batch_size}", "run.batch_size": 6})
    assert load_config(path).run.eval_batch_size == 6


# ---------------------------------------------------------------------------------------- our keys on top of their file


def test_overrides_and_derived_files_use_our_keys(tmp_path: Path) -> None:
    path = write(tmp_path, {})
    config = load_config(path, "run.learning_rate=1e-4", "image_size=224", "model.head.name=linear")
    assert (config.run.learning_rate, config.image_size, config.model["head"]["name"]) == (1e-4, 224, "linear")
    (tmp_path / "leaf.yaml").write_text("base: reference.yaml\nimage_size: 224\nrun: {seed: 3}\n")
    config = load_config(tmp_path / "leaf.yaml")
    assert (config.image_size, config.run.seed, config.run.batch_size) == (224, 3, 32)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.init_lr=1e-4", "run.init_lr: a key of the reference code. Here it is run.learning_rate."),
        ("run.max_epoch=3", "run.max_epoch: a key of the reference code. Here it is run.max_epochs."),
        ("model.freeze_text=False", "model.freeze_text: a key of the reference code. Here it is"),
        ("dataset.transform_train.cfg.image_size=224", "dataset.transform_train: a key of the reference code. Here"),
        ("run.distributed=False", "run.distributed: a key of the reference code. Here it is the number of processes"),
    ],
)  # fmt: skip
def test_their_keys_in_our_config_are_answered_with_ours(override: str, message: str, tmp_path: Path) -> None:
    assert refused(write(tmp_path, {}), override).startswith(message)
    assert refused(REPOSITORY / "ipiqa/projects/agiqa3k/ipiqa.yaml", override).startswith(message)


def test_there_is_something_of_ours_for_every_key_of_theirs() -> None:
    for key in KEYS:
        assert " Here it is " in with_other_name(f"{key}: no such setting.", is_translated=False)


def test_shown_yaml_is_in_our_form(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, {}))
    (tmp_path / "shown.yaml").write_text(config.to_yaml())
    assert not is_reference_format(yaml.safe_load(config.to_yaml()))
    assert load_config(tmp_path / "shown.yaml") == config


def test_which_form_a_file_has() -> None:
    assert is_reference_format(SECTIONS)
    assert is_reference_format({"run": {"init_lr": 1e-5}}) and not is_reference_format({"run": {"seed": 1}})
    assert not is_reference_format({"image_size": 64, "run": {"init_lr": 1e-5}})  # ours, with a slip
    assert not is_reference_format({"model": None, "dataset": ["name"]})
