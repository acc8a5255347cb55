"""What only a GPU can show. Everything here is skipped, with the reason, where there is none."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from processes import run_together
from test_engine_trainer import ToyLoader, make_trainer
from toy import write_config

from ipiqa import build, dist
from ipiqa.config.loading import load_config
from ipiqa.engine import checkpoint
from ipiqa.engine.stop import Interrupted
from ipiqa.engine.trainer import Evaluation
from ipiqa.tasks.quality_regression import QualityRegression
from ipiqa.training.cross_validation import run

NUM_GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(NUM_GPUS == 0, reason="needs an NVIDIA GPU: torch.cuda.is_available() is false"),
]


@pytest.fixture(autouse=True)
def same_precision_options() -> Iterator[None]:
    """Training sets options of the whole process; here the next test needs them as they were."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    deterministic = torch.backends.cudnn.deterministic
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
    torch.backends.cudnn.deterministic = deterministic


@pytest.fixture
def cfg(tmp_path: Path) -> Path:
    return write_config(tmp_path)


def history(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "fold_00/metrics.jsonl").read_text().splitlines()]


def train(cfg: Path, name: str, *changes: str, resume: bool = False) -> Path:
    config = load_config(cfg, "run.device=cuda", f"run.output_dir={cfg.parent}/{name}", *changes)
    return run(config, folds=[0], resume=resume)


@pytest.mark.parametrize(("device", "chosen"), [("auto", "cuda"), ("cuda", "cuda"), ("cpu", "cpu")])
def test_the_device_is_the_one_asked_for(device: str, chosen: str, cfg: Path) -> None:
    found = build.choose_device(load_config(cfg, f"run.device={device}"))
    assert found.type == chosen
    assert chosen == "cpu" or torch.cuda.current_device() == found.index == dist.local_rank()


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_what_the_setting_says(tf32: bool, cfg: Path) -> None:
    device = build.choose_device(load_config(cfg, "run.device=cuda", f"run.tf32={str(tf32).lower()}"))
    assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is tf32
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=generator) for _ in range(2))
    error = ((a.to(device) @ b.to(device)).cpu().double() - a.double() @ b.double()).abs().max().item()
    if torch.cuda.get_device_capability() >= (8, 0):  # older ones have no TF32
        assert (error > 1e-3) is tf32


def test_it_trains_to_the_numbers_of_the_cpu(cfg: Path) -> None:
    on_gpu = train(cfg, "gpu", "model.head.dropout=0.0")
    on_cpu = train(cfg, "cpu", "model.head.dropout=0.0", "run.device=cpu")
    for gpu, cpu in zip(history(on_gpu), history(on_cpu), strict=True):
        assert gpu["loss"] == pytest.approx(cpu["loss"], rel=1e-2)
    tensors = checkpoint.load(on_gpu / "fold_00/best.pt")["model"]
    assert {tensor.device.type for tensor in tensors.values()} <= {"cuda", "cpu"}
    # weights of a GPU are evaluated without one
    again = train(cfg, "again", "run.device=cpu", "run.evaluate=true", f"run.checkpoint={on_gpu}")
    assert (again / "fold_00/predictions.csv").is_file()


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_trains_near_the_full_one(amp: str, cfg: Path) -> None:
    if amp == "bf16" and not torch.cuda.is_bf16_supported():
        pytest.skip("this GPU has no bf16")
    same = ["model.head.dropout=0.0", "run.max_epochs=4"]
    full, half = train(cfg, "full", *same), train(cfg, "half", *same, f"run.amp={amp}")
    losses = [row["loss"] for row in history(half)]
    assert all(math.isfinite(loss) for loss in losses)
    # the first steps of fp16 may be left out while its scale is found
    assert losses[-1] == pytest.approx(history(full)[-1]["loss"], rel=0.5)
    scaler = checkpoint.load(half / "fold_00/last.pt")["scaler"]
    assert bool(scaler) is (amp == "fp16")
    rows = (half / "fold_00/predictions.csv").read_text().splitlines()[1:]
    assert len({row.split(",", 1)[1] for row in rows}) == len(rows)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_a_compiled_run_has_the_losses_of_the_plain_one(cfg: Path) -> None:
    same = "model.head.dropout=0.0"  # compiled code draws dropout in an order of its own
    plain, compiled = train(cfg, "plain", same), train(cfg, "compiled", same, "run.compile=true")
    assert [row["loss"] for row in history(compiled)] == pytest.approx(
        [row["loss"] for row in history(plain)], rel=2e-2
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_pinned_and_arrive_whole(num_workers: int, cfg: Path) -> None:
    config = load_config(cfg, "run.device=cuda", f"run.num_workers={num_workers}")
    device, processor = build.choose_device(config), build.make_processor(config)
    data = build.load_data(config, processor)
    batches = build.train_batches(config, data, build.split_of(config, data.table, 0), device)
    inputs = build.Inputs(processor, device, num_rows=len(data.table), seed=0, fold=0)
    reference = build.Inputs(processor, torch.device("cpu"), num_rows=len(data.table), seed=0, fold=0)
    batches.set_epoch(0)
    for batch in batches:
        assert batch["images"].is_pinned() and batch["targets"].is_pinned()
        moved, here = inputs(batch, 0), reference(batch, 0)
        assert moved["images"].device == device
        torch.testing.assert_close(moved["images"].cpu(), here["images"])
        torch.testing.assert_close(moved["targets"].cpu(), here["targets"])


def assert_same_run(a: Path, b: Path) -> None:
    assert history(a) == history(b)
    assert (a / "fold_00/predictions.csv").read_text() == (b / "fold_00/predictions.csv").read_text()
    left, right = (checkpoint.load(folder / "fold_00/last.pt")["model"] for folder in (a, b))
    assert all(torch.equal(value.cpu(), right[name].cpu()) for name, value in left.items())


@pytest.mark.parametrize("amp", ["none", "fp16"])
def test_stopped_and_resumed_equals_uninterrupted(amp: str, cfg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["run.max_epochs=3", f"run.amp={amp}"]
    whole = train(cfg, "whole", *settings)
    assert_same_run(whole, train(cfg, "twice", *settings))
    plain_step, steps = QualityRegression.step, []

    def step(self: QualityRegression, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        steps.append(1)
        if len(steps) == 6:  # of four steps an epoch
            signal.raise_signal(signal.SIGTERM)
        return plain_step(self, model, batch)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(QualityRegression, "step", step)
        train(cfg, "parts", *settings)
    assert_same_run(whole, train(cfg, "parts", *settings, resume=True))


def test_one_process_of_an_nccl_group_trains_as_one_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)

    def weights(name: str, parallel: bool) -> dict[str, torch.Tensor]:
        loader = ToyLoader()
        loader.x, loader.y = loader.x.to(device), loader.y.to(device)
        torch.manual_seed(0)
        model = torch.nn.Linear(5, 1).to(device)
        with monkeypatch.context() as patch:
            if parallel:  # so that the model is wrapped for several processes
                patch.setattr(dist, "world_size", lambda: 2)
            trainer = make_trainer(
                tmp_path / name, loader=loader, model=model, device=device, max_epochs=2,
                optimizer=torch.optim.AdamW(model.parameters(), lr=0.05),
                evaluate=lambda module: Evaluation(0.0, {}, torch.zeros(1)),
            )  # fmt: skip
        assert (trainer.parallel is not model) is parallel
        trainer.fit()
        return model.state_dict()

    alone = weights("alone", parallel=False)
    torch.distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        grouped = weights("grouped", parallel=True)
    finally:
        torch.distributed.destroy_process_group()
    assert all(torch.equal(value, grouped[name]) for name, value in alone.items())


def train_in_a_group(cfg: Path) -> None:
    train(cfg, "group", "run.batch_size=4")


@pytest.mark.skipif(NUM_GPUS < 2, reason=f"needs two GPUs, and there are {NUM_GPUS}")
def test_two_processes_train_on_a_gpu_each(cfg: Path) -> None:
    assert run_together(2, train_in_a_group, cfg) == [0, 0]
    environment = json.loads((cfg.parent / "group/environment.json").read_text())
    assert environment["num_processes"] == 2 and len(history(cfg.parent / "group")) == 2
