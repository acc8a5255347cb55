"""Half precision and torch.compile, as far as a CPU can show them; test_cuda.py has the same on a GPU."""

from __future__ import annotations

import functools
import json
import math
import signal
from pathlib import Path

import pytest
import torch
from test_engine_trainer import assert_same_files, make_trainer
from toy import write_config

from ipiqa import build
from ipiqa.config.loading import load_config
from ipiqa.engine import checkpoint
from ipiqa.engine.optim import Schedule
from ipiqa.engine.predict import predict
from ipiqa.engine.stop import Interrupted, StopSignals
from ipiqa.models.towers import tokenizer_of
from ipiqa.training.cross_validation import run

CPU = torch.device("cpu")


def test_fp16_scales_the_loss_and_learns(tmp_path: Path) -> None:
    schedule = Schedule(kind="constant_lr", learning_rate=0.05, max_epochs=30, steps_per_epoch=6)
    trainer = make_trainer(tmp_path, amp="fp16", max_epochs=30, schedule=schedule)
    assert trainer.scaler.is_enabled()
    trainer.fit()
    history = trainer.progress.history
    assert history[-1]["loss"] < history[0]["loss"] / 3
    assert checkpoint.load(tmp_path / "last.pt")["scaler"]["scale"] == trainer.scaler.get_scale() >= 1


def test_fp16_leaves_out_the_step_whose_gradients_overflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path, amp="fp16", max_epochs=1)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=256)  # so low that only the gradient made here overflows
    parameter = next(trainer.model.parameters())
    updates: list[bool] = []  # whether each update moved the weights
    update = trainer.scaler.step

    def watched(optimizer: torch.optim.Optimizer) -> float | None:
        assert parameter.grad is not None
        if not updates:
            parameter.grad[0] = math.inf
        before = parameter.detach().clone()
        done = update(optimizer)
        updates.append(not torch.equal(parameter, before))
        return done

    monkeypatch.setattr(trainer.scaler, "step", watched)
    trainer.fit()
    assert updates == [False] + [True] * 5
    assert trainer.scaler.get_scale() == 128


@pytest.mark.parametrize("stop_step", [1, 4])
def test_fp16_is_resumed_bit_for_bit_with_its_scale(tmp_path: Path, stop_step: int) -> None:
    make_trainer(tmp_path / "whole", amp="fp16").fit()
    steps = []

    def interrupt(stop: StopSignals, epoch: int, batch: dict) -> None:
        steps.append(epoch)
        if len(steps) == 6 + stop_step:
            stop.signal_number = signal.SIGTERM

    with pytest.raises(Interrupted):
        make_trainer(tmp_path / "parts", amp="fp16", after_step=interrupt).fit()
    trainer = make_trainer(tmp_path / "parts", amp="fp16")
    assert trainer.restore(lambda state: None)
    trainer.fit()
    assert_same_files(tmp_path / "whole", tmp_path / "parts")
    left, right = (checkpoint.load(tmp_path / name / "last.pt")["scaler"] for name in ("whole", "parts"))
    assert left == right


def test_scores_in_bf16_stay_distinct(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path))
    torch.manual_seed(0)
    model = build.make_model(config, num_targets=2).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(512, 3, 32, 32, generator=generator) + 3 * torch.randn(512, 3, 1, 1, generator=generator)
    tokens = tokenizer_of(config.model.get("prompt_encoder"))(["a red square"] * len(images))
    batch = {"rows": torch.arange(len(images)), "images": images, "tokens": tokens}
    _, scores = predict(model, [batch], lambda m, b: m(b["images"], b["tokens"]), device=CPU, amp="bf16")
    for target in range(2):
        assert len(set(scores[:, target].tolist())) > 384  # float32 gives 481 here, a last layer in bf16 four


def losses(run_dir: Path) -> list[float]:
    lines = (run_dir / "fold_00" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


# torch's own code reads .grad of tensors that have none, and hides the warning in a way that an error defeats
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize(
    ("backend", "tolerance"), [("eager", 1e-6), pytest.param("inductor", 1e-2, marks=pytest.mark.slow)]
)
def test_a_compiled_run_is_the_same_run(
    backend: str, tolerance: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, same = write_config(tmp_path), "model.head.dropout=0.0"  # compiled code draws dropout in an order of its own
    plain = run(load_config(cfg, same, f"run.output_dir={tmp_path}/plain"), folds=[0])
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    compiled = run(load_config(cfg, same, "run.compile=true", f"run.output_dir={tmp_path}/compiled"), folds=[0])
    assert losses(compiled) == pytest.approx(losses(plain), rel=tolerance, abs=0)
    left, right = (checkpoint.load(folder / "fold_00/best.pt")["model"] for folder in (plain, compiled))
    assert left.keys() == right.keys()  # no prefix of the compiler's
