"""The training loop on a toy model: learns, resumes bit for bit, accumulates exactly, stops, says what went wrong."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from ipiqa.engine import checkpoint
from ipiqa.engine.optim import Schedule
from ipiqa.engine.predict import predict
from ipiqa.engine.stop import Interrupted, StopSignals
from ipiqa.engine.trainer import Evaluation, NonFiniteLossError, Trainer
from ipiqa.errors import DataError
from ipiqa.files import replacing

CPU = torch.device("cpu")


class ToyLoader:
    """Twelve rows, the order drawn from the epoch."""

    def __init__(self, batch_size: int = 2) -> None:
        self.x = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
        self.y = self.x @ torch.arange(5.0)[:, None]
        self.batch_size, self.epoch, self.first = batch_size, 0, 0

    def set_epoch(self, epoch: int, first: int) -> None:
        self.epoch, self.first = epoch, first

    def __len__(self) -> int:
        return -(-12 // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        order = torch.randperm(12, generator=torch.Generator().manual_seed(self.epoch)).split(self.batch_size)
        for rows in order[self.first :]:
            yield {"x": self.x[rows], "y": self.y[rows], "rows": rows}


def make_trainer(folder: Path, *, loader: ToyLoader | None = None, after_step: Any = None, **changes: Any) -> Trainer:
    torch.manual_seed(0)
    loader = loader or ToyLoader()
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.2), nn.Tanh(), nn.BatchNorm1d(8), nn.Linear(8, 1))
    stop = StopSignals()

    def compute_loss(module: nn.Module, batch: dict[str, torch.Tensor], epoch: int) -> torch.Tensor:
        if after_step is not None:
            after_step(stop, epoch, batch)
        return mse_loss(module(batch["x"]), batch["y"])

    def evaluate(module: nn.Module) -> Evaluation:
        module.eval()
        with torch.no_grad():
            predictions = module(loader.x)
        loss = mse_loss(predictions, loader.y).item()
        return Evaluation(-loss, {"toy": {"loss": loss}}, predictions)

    settings: dict[str, Any] = {
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=0.05),
        "schedule": Schedule(
            kind="linear_warmup_cosine_lr_step-wise", learning_rate=0.05, max_epochs=4, steps_per_epoch=len(loader)
        ),
        "train_loader": loader,
        "start_epoch": loader.set_epoch,
        "compute_loss": compute_loss,
        "evaluate": evaluate,
        "folder": folder,
        "identity": {"seed": 0},
        "spec": {},
        "seed": (0, 0),
        "device": CPU,
        "max_epochs": 4,
        "stop": stop,
    }
    return Trainer(**{**settings, **changes})


def assert_same_files(a: Path, b: Path) -> None:
    assert (a / "metrics.jsonl").read_text() == (b / "metrics.jsonl").read_text()
    for name in ("last.pt", "best.pt"):
        left, right = checkpoint.load(a / name), checkpoint.load(b / name)
        assert left["epoch"] == right["epoch"]
        assert torch.equal(left["evaluation"]["predictions"], right["evaluation"]["predictions"])
        for key, value in left["model"].items():
            assert torch.equal(value, right["model"][key]), key


def test_it_learns_and_leaves_its_files(tmp_path: Path) -> None:
    schedule = Schedule(kind="constant_lr", learning_rate=0.05, max_epochs=30, steps_per_epoch=6)
    trainer = make_trainer(tmp_path, max_epochs=30, schedule=schedule)
    trainer.fit()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 31))
    assert rows[-1]["loss"] < rows[0]["loss"] / 4
    assert rows[1]["step"] == 12
    assert trainer.progress.best_value == max(row["value"] for row in rows)
    assert checkpoint.load(tmp_path / "best.pt")["epoch"] == trainer.progress.best_epoch
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pt", "last.pt", "metrics.jsonl"]


@pytest.mark.parametrize(("stop_epoch", "stop_step"), [(0, 0), (1, 3), (2, 5), (3, 1)])
def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path, stop_epoch: int, stop_step: int) -> None:
    make_trainer(tmp_path / "whole").fit()
    seen = []

    def interrupt(stop: StopSignals, epoch: int, batch: dict) -> None:
        seen.append(epoch)
        if epoch == stop_epoch and seen.count(epoch) == stop_step + 1:
            stop.signal_number = signal.SIGTERM

    with pytest.raises(Interrupted) as caught:
        make_trainer(tmp_path / "parts", after_step=interrupt).fit()
    assert caught.value.signal_number == signal.SIGTERM
    trainer = make_trainer(tmp_path / "parts")
    assert trainer.restore(lambda state: None)
    finished = trainer.progress.epoch * 6 + trainer.progress.step
    assert finished == stop_epoch * 6 + stop_step + 1
    trainer.fit()
    assert_same_files(tmp_path / "whole", tmp_path / "parts")


def test_lost_after_a_saved_epoch_resumes_from_it(tmp_path: Path) -> None:
    make_trainer(tmp_path / "whole").fit()

    def fail(stop: StopSignals, epoch: int, batch: dict) -> None:
        if epoch == 2:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        make_trainer(tmp_path / "parts", after_step=fail).fit()
    trainer = make_trainer(tmp_path / "parts")
    assert trainer.restore(lambda state: None) and trainer.progress.epoch == 2
    trainer.fit()
    assert_same_files(tmp_path / "whole", tmp_path / "parts")


def test_truncated_last_checkpoint_is_named_and_the_one_before_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(tmp_path / "whole").fit()

    def fail(stop: StopSignals, epoch: int, batch: dict) -> None:
        if epoch == 3:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        make_trainer(tmp_path / "parts", after_step=fail).fit()
    last = tmp_path / "parts" / "last.pt"
    last.write_bytes(last.read_bytes()[:1000])
    trainer = make_trainer(tmp_path / "parts")
    with caplog.at_level("WARNING", logger="ipiqa"):
        assert trainer.restore(lambda state: None)
    assert "last.pt: damaged or cut off" in caplog.text and trainer.progress.epoch == 2
    trainer.fit()
    assert_same_files(tmp_path / "whole", tmp_path / "parts")
    (tmp_path / "parts" / "last.pt").write_bytes(b"")
    with pytest.raises(DataError, match=r"last.pt: damaged or cut off"):
        make_trainer(tmp_path / "parts").restore(lambda state: None)


def test_accumulation_equals_the_larger_batch_also_in_the_short_last_group(tmp_path: Path) -> None:
    def weights(batch_size: int, accumulate: int) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Linear(5, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        trainer = make_trainer(
            tmp_path / f"{batch_size}", loader=ToyLoader(batch_size), model=model, optimizer=optimizer,
            accumulate_steps=accumulate, max_epochs=2,
            schedule=Schedule(kind="constant_lr", learning_rate=0.01, max_epochs=2, steps_per_epoch=6),
        )  # fmt: skip
        trainer.fit()
        return model.weight.detach()

    # 12 rows: groups of 4 + 4 + 4 either way; then 8 + 4, where the last group is one short
    torch.testing.assert_close(weights(2, 2), weights(4, 1))
    torch.testing.assert_close(weights(4, 2), weights(8, 1))


def test_gradients_are_clipped(tmp_path: Path) -> None:
    norms = []
    trainer = make_trainer(tmp_path, clip_grad_norm=1e-3, max_epochs=1)
    step = trainer.optimizer.step

    def watched(*args: Any, **kwargs: Any) -> Any:
        grads = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        norms.append(math.sqrt(sum(float(g.square().sum()) for g in grads)))
        return step(*args, **kwargs)

    trainer.optimizer.step = watched  # type: ignore[method-assign]
    trainer.fit()
    assert norms and max(norms) <= 1.01e-3


def test_non_finite_loss_names_epoch_step_and_rows(tmp_path: Path) -> None:
    loader = ToyLoader()
    loader.y[7] = math.inf
    with pytest.raises(NonFiniteLossError) as caught:
        make_trainer(tmp_path, loader=loader).fit()
    assert caught.value.epoch == 1 and 7 in caught.value.rows and len(caught.value.rows) == 2
    assert not (tmp_path / "last.pt").exists()


def test_undefined_value_is_never_the_best(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, evaluate=lambda m: Evaluation(-math.inf, {}, torch.zeros(1)))
    trainer.fit()
    assert trainer.progress.best_epoch == 0 and not (tmp_path / "best.pt").exists()


def test_foreign_and_newer_and_malicious_checkpoints_are_refused(tmp_path: Path) -> None:
    torch.save({"weights": 1}, tmp_path / "a.pt")
    with pytest.raises(DataError, match="not a checkpoint of this framework"):
        checkpoint.load(tmp_path / "a.pt")
    torch.save({"format": 99}, tmp_path / "b.pt")
    with pytest.raises(DataError, match="format 99 is newer than this version reads"):
        checkpoint.load(tmp_path / "b.pt")

    class Payload:
        def __reduce__(self) -> tuple:
            return Path.mkdir, (tmp_path / "it_ran",)

    torch.save({"format": 1, "x": Payload()}, tmp_path / "c.pt")
    with pytest.raises(DataError, match="asks for code to be run"):
        checkpoint.load(tmp_path / "c.pt")
    assert not (tmp_path / "it_ran").exists()


def test_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "last.pt", {"model": 1})
    with pytest.raises(RuntimeError), replacing(tmp_path / "last.pt", "wb") as file:
        file.write(b"half")
        raise RuntimeError("killed")
    assert checkpoint.load(tmp_path / "last.pt")["model"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_predict_returns_every_row_once_in_order_and_keeps_the_mode() -> None:
    model = nn.Linear(5, 2).train()
    loader = ToyLoader(batch_size=5)
    rows, predictions = predict(model, loader, lambda m, b: m(b["x"]), device=CPU)
    assert rows.tolist() == list(range(12)) and model.training
    torch.testing.assert_close(torch.from_numpy(predictions), model(loader.x).detach())


def test_first_signal_is_a_request_and_the_second_is_obeyed() -> None:
    with StopSignals() as stop:
        assert not stop.requested()
        signal.raise_signal(signal.SIGINT)
        assert stop.requested() and stop.signal_number == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
