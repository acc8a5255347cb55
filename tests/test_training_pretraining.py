"""Image2Prompt pre-training: from pictures and prompts to an image tower that IP-IQA starts from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused
from tar_shards import write_shards
from torch.nn import functional
from toy import write_config, write_dataset

from ipiqa.build import make_model
from ipiqa.cli import main
from ipiqa.config.loading import Config, load_config
from ipiqa.engine import trainer as training
from ipiqa.engine.stop import Interrupted
from ipiqa.errors import ConfigError
from ipiqa.metrics import retrieval
from ipiqa.tasks.image2prompt import ImageToPrompt
from ipiqa.training.cross_validation import run
from ipiqa.training.pretraining import pretrain

FILES = ("summary.json", "metrics.jsonl")
CONFIG = """\
image_size: 32
model:
  name: image2prompt
  image_encoder: {{name: clip_resnet, layers: [1, 1, 1, 1], width: 4, embed_dim: 8}}
  prompt_encoder: {{name: clip_text, width: 8, layers: 1, heads: 1, embed_dim: 8, freeze: all, qa_token: none}}
dataset:
  name: pairs
  annotations: {folder}/data.csv
  images: {folder}/images
  image: name
  image_cache: false
  cache_dir: {folder}/cache
processor: {{name: squash, flip: 0.0}}
split: {{kind: holdout, seed: 1}}
task: {{name: image2prompt}}
run:
  output_dir: {folder}/output
  max_epochs: 3
  batch_size: 8
  learning_rate: 1e-3
  num_workers: 0
"""


@pytest.fixture
def cfg(tmp_path: Path) -> Path:
    write_dataset(tmp_path)
    path = tmp_path / "image2prompt.yaml"
    path.write_text(CONFIG.format(folder=tmp_path))
    return path


def test_the_image_tower_moves_the_prompts_stay_and_the_result_goes_into_ipiqa(
    cfg: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", "--cfg-path", str(cfg)]) == 0
    out = capsys.readouterr().out
    summary = json.loads((tmp_path / "output/summary.json").read_text())
    assert summary["last"]["epoch"] == 3 and summary["best"]["num_prompts"] == 2 and summary["best"]["num_images"] == 8
    assert f"best epoch {summary['best']['epoch']}: recall@1" in out
    encoder = tmp_path / "output/image_encoder.safetensors"
    assert f"Use it: model.image_encoder.weights={encoder}" in out
    rows = [json.loads(line) for line in (tmp_path / "output/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"]

    config = load_config(cfg)
    torch.manual_seed(config.run.seed)
    start, best = (
        make_model(config, 0).state_dict(),
        torch.load(tmp_path / "output/best.pt", weights_only=True)["model"],
    )
    moved = {name.split(".")[0] for name, value in start.items() if not torch.equal(value, best[name])}
    assert moved == {"image_encoder"}

    scored = write_config(tmp_path / "scored")
    model = make_model(load_config(scored, f"model.image_encoder.weights={encoder}"), 2)
    for name, value in model.image_encoder.state_dict().items():
        assert torch.equal(value, best[f"image_encoder.{name}"]), name


def stopped_at(config: Config, monkeypatch: pytest.MonkeyPatch, epoch: int, step: int) -> None:
    """Trains until that step is done and a signal is answered."""

    def requested(self: training.Trainer, device: object) -> bool:
        return self_.progress.epoch == epoch and self_.progress.step == step

    made = training.Trainer.__post_init__
    self_: training.Trainer

    def post_init(trainer: training.Trainer) -> None:
        nonlocal self_
        self_ = trainer
        made(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "__post_init__", post_init)
        patch.setattr(training.dist, "any_process", requested)
        with pytest.raises(Interrupted):
            pretrain(config)


@pytest.mark.parametrize("where", [(1, 0), (1, 2)])
def test_a_stopped_run_is_resumed_to_the_same_numbers(
    where: tuple[int, int], cfg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pretrain(load_config(cfg, f"run.output_dir={tmp_path}/whole"))
    parts = load_config(cfg, f"run.output_dir={tmp_path}/parts")
    stopped_at(parts, monkeypatch, *where)
    assert not (tmp_path / "parts/summary.json").exists()
    pretrain(parts, resume=True)
    for name in FILES:
        assert (tmp_path / "parts" / name).read_text() == (whole / name).read_text(), name
    a, b = ((tmp_path / part / "image_encoder.safetensors").read_bytes() for part in ("whole", "parts"))
    assert a == b
    assert pretrain(parts, resume=True) == tmp_path / "parts"  # finished: nothing is done
    assert "already holds a run" in refused(lambda: pretrain(parts))
    changed = load_config(cfg, f"run.output_dir={tmp_path}/parts", "task.loss=contrastive")
    assert "task.loss was 'cosine', is 'contrastive'" in refused(lambda: pretrain(changed, resume=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_shards_train_and_resume(
    workers: int, cfg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path, num_shards=4, num_samples=8)
    streamed = [
        "dataset.name=shards", f"dataset.shards={tmp_path}/00[012].tar", f"dataset.val_shards={tmp_path}/003.tar",
        "dataset.image=png",
        "dataset.samples_per_epoch=24", "dataset.shuffle_buffer=4", f"run.num_workers={workers}", "run.max_epochs=2",
    ]  # fmt: skip
    whole = pretrain(load_config(cfg, *streamed, f"run.output_dir={tmp_path}/whole"))
    assert json.loads((whole / "summary.json").read_text())["last"]["num_images"] == 8
    parts = load_config(cfg, *streamed, f"run.output_dir={tmp_path}/parts")
    stopped_at(parts, monkeypatch, 1, 1)
    pretrain(parts, resume=True)
    for name in FILES:
        assert (tmp_path / "parts" / name).read_text() == (whole / name).read_text(), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.prompt_encoder.freeze=none"], "Set freeze: all and qa_token: none"),
        (["model.image_encoder.embed_dim=16"], "image features have 16 numbers, prompt features 8"),
        (["task.name=quality_regression"], "task.name: 'quality_regression' is not pre-trained"),
        (["split.kind=kfold"], "split.kind: 'kfold' is for folds. Take holdout"),
        (["run.evaluate=true", "run.checkpoint=x"], "run.evaluate: True does nothing in pre-training"),
        (["run.num_folds=3"], "run.num_folds: 3 does nothing in pre-training. Leave it at 10"),
        (["task.temperature=0"], "task.temperature: 0.0 is not above 0"),
    ],
)
def test_what_cannot_be_pretrained_is_refused(changes: list[str], message: str, cfg: Path, tmp_path: Path) -> None:
    assert message in refused(lambda: pretrain(load_config(cfg, *changes)))
    assert not list((tmp_path / "output").glob("*.pt"))


def test_train_refuses_what_is_for_pretraining(cfg: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'image2prompt' is for pre-training"):
        run(load_config(cfg))
    scored = write_config(tmp_path / "scored")
    pairs = [
        "dataset.name=pairs", f"dataset.annotations={tmp_path}/data.csv", f"dataset.images={tmp_path}/images",
        "dataset.image=name",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="'pairs' is for pre-training"):
        run(load_config(scored, *pairs))


# --- losses and metrics ----------------------------------------------------------------------------------------------


def test_the_cosine_loss_is_zero_at_the_prompts_own_direction() -> None:
    prompts = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    task = ImageToPrompt()
    assert task.loss(3 * prompts, prompts).item() == pytest.approx(0, abs=1e-6)
    assert task.loss(-prompts, prompts).item() == pytest.approx(2, abs=1e-6)
    expected = functional.cosine_embedding_loss(prompts.flip(0), prompts, torch.ones(6))
    torch.testing.assert_close(task.loss(prompts.flip(0), prompts), expected)


def test_the_contrastive_loss_shares_the_answer_among_images_of_one_prompt() -> None:
    prompts = torch.eye(3)[[0, 1, 1]]
    task = ImageToPrompt(loss="contrastive", temperature=0.1)
    e = float(np.exp(10))
    # Two of three answers are right for the images of the second prompt, one for the image of the first.
    expected = (-np.log(e / (e + 2)) - 2 * np.log(e / (2 * e + 1))) / 3
    assert task.loss(prompts, prompts).item() == pytest.approx(expected, rel=1e-5)


def test_retrieval_counts_distinct_prompts() -> None:
    prompts = np.repeat(np.eye(8), 3, axis=0)  # eight prompts of three images
    assert retrieval(prompts, prompts) == {"recall_at_1": 1.0, "recall_at_5": 1.0, "mean_cosine": 1.0}
    nearer = np.full((8, 8), 1.0)
    nearer[np.arange(8), np.arange(8)] = 0.5  # each image's own prompt is the last of eight
    assert retrieval(np.repeat(nearer, 3, axis=0), prompts)["recall_at_5"] == 0.0
    nearer = np.eye(8) + 2 * np.roll(np.eye(8), 1, axis=1)  # one other prompt is nearer
    found = retrieval(np.repeat(nearer, 3, axis=0), prompts)
    assert (found["recall_at_1"], found["recall_at_5"]) == (0.0, 1.0)
