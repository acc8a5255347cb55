"""Resuming from whatever a killed job has left: the same run to the bit, or one line."""

from __future__ import annotations

import copy
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_trainer import ToyLoader, assert_same_files, make_trainer

from ipiqa.engine import checkpoint, log
from ipiqa.engine.trainer import Evaluation
from ipiqa.errors import DataError, IpiqaError


def stopped_after(folder: Path, epoch: int, **changes: Any) -> None:
    """Trains until the best weights of an epoch are written, and dies before its last.pt is."""
    trainer = make_trainer(folder, **changes)
    save = trainer.save

    def die() -> None:
        if trainer.progress.epoch == epoch:
            raise KeyboardInterrupt
        save()

    trainer.save = die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()


@pytest.mark.parametrize(("epoch", "save_every"), [(1, 1), (3, 1), (4, 3), (4, 2)])
def test_best_weights_of_a_killed_life_are_rolled_back_with_its_epoch(
    epoch: int, save_every: int, tmp_path: Path
) -> None:
    make_trainer(tmp_path / "whole").fit()
    stopped_after(tmp_path / "parts", epoch, save_every=save_every)
    assert checkpoint.load(tmp_path / "parts/best.pt")["epoch"] == epoch  # the toy gets better each epoch
    trainer = make_trainer(tmp_path / "parts", save_every=save_every)
    assert trainer.restore(lambda state: None) == (epoch > save_every)
    best = tmp_path / "parts/best.pt"
    assert (checkpoint.load(best)["epoch"] if best.exists() else 0) == trainer.progress.best_epoch
    trainer.fit()
    assert_same_files(tmp_path / "whole", tmp_path / "parts")
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == ["best.pt", "last.pt", "metrics.jsonl"]


def test_a_damaged_last_checkpoint_falls_back_to_the_best_weights_of_then(tmp_path: Path) -> None:
    stopped_after(tmp_path, 4)
    (tmp_path / "last.pt").write_bytes(b"PK")
    (tmp_path / "best.pt").write_bytes(b"")
    with pytest.raises(DataError, match=r"last.pt: damaged"):  # previous.pt refers to weights that are gone
        make_trainer(tmp_path).restore(lambda state: None)
    (tmp_path / "last.pt").unlink()
    with pytest.raises(DataError, match=r"previous.pt: the weights of its best epoch, 2, are gone"):
        make_trainer(tmp_path).restore(lambda state: None)


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    make_trainer(tmp_path).fit()
    (tmp_path / "last.pt").rename(tmp_path / "previous.pt")
    (tmp_path / "last.pt").mkdir()  # root may read everything, but not this
    with pytest.raises(DataError, match=r"last.pt: cannot be read \(Is a directory\). Check its permissions"):
        make_trainer(tmp_path).restore(lambda state: None)


ODD = {
    "other model": lambda state: state.update(model={"0.weight": torch.zeros(2, 2)}),
    "tensor of another shape": lambda state: state["model"].update({"0.weight": torch.zeros(1).expand(10**12)}),
    "model is no mapping": lambda state: state.update(model=[1, 2]),
    "other moments": lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)),
    "other betas": lambda state: state["optimizer"]["param_groups"][0].update(betas=(0.1, 0.2)),
    "no optimizer": lambda state: state.pop("optimizer"),
    "no identity": lambda state: state.pop("identity"),
    "no evaluation": lambda state: state.pop("evaluation"),
    "progress is a list": lambda state: state.update(progress=[]),
    "epoch is text": lambda state: state["progress"].update(epoch="2"),
    "epoch is huge": lambda state: state["progress"].update(epoch=10**30),
    "step is negative": lambda state: state["progress"].update(step=-1),
    "history is nested": lambda state: state["progress"].update(history=[[[[]]]] * 4),
    "history is cut": lambda state: state["progress"]["history"].pop(),
    "loss sums are text": lambda state: state.update(loss_sums=["a"]),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_state_is_refused_in_one_line(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    make_trainer(tmp_path).fit()
    state = copy.deepcopy(checkpoint.load(tmp_path / "last.pt"))
    ODD[name](state)
    checkpoint.save(tmp_path / "last.pt", state)
    with pytest.raises(DataError, match=r"last.pt: .* Delete it to start this fold anew") as caught:
        make_trainer(tmp_path).restore(lambda state: None)
    assert "\n" not in str(caught.value)


VALUES = st.one_of(
    st.none(), st.integers(), st.floats(), st.text(max_size=3), st.just([]), st.just({}), st.just(torch.zeros(2))
)


def paths_in(content: Any, path: tuple = ()) -> list[tuple]:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(found for key, value in items for found in paths_in(value, (*path, key)))]


@settings(max_examples=80, derandomize=True, deadline=None)
@given(data=st.data())
def test_any_change_to_a_state_is_resumed_or_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "changed"
    if not (folder / "whole.pt").exists():
        make_trainer(folder, max_epochs=2).fit()
        (folder / "last.pt").rename(folder / "whole.pt")
    state = checkpoint.load(folder / "whole.pt")
    *outer, key = data.draw(st.sampled_from([path for path in paths_in(state) if path and path != ("format",)]))
    place: Any = state
    for step in outer:
        place = place[step]
    place[key] = data.draw(VALUES)
    checkpoint.save(folder / "last.pt", state)
    (folder / "best.pt").write_bytes((folder / "whole.pt").read_bytes())
    trainer = make_trainer(folder, max_epochs=2)
    try:
        trainer.restore(lambda state: None)
    except IpiqaError:
        return
    trainer.fit()


LINE = re.compile(
    r"DEBUG toy epoch 1/4 step 4/6: loss \d+\.\d{5}, learning rate 0.0\d+, \d+\.\d images/s, \d:\d\d:\d\d left$"
)


def test_the_log_has_steps_epochs_and_the_error_that_ended_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log.set_up()
    trainer = make_trainer(tmp_path / "a", log_every=4, label="toy ")
    with log.recording(tmp_path / "train.log"):
        trainer.fit()
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert len(lines) == 8 and LINE.search(lines[0]), lines[0]
    assert "INFO toy epoch 4/4 step 6/6: mean loss" in lines[-1] and lines[-1].endswith("0:00:00 left")
    assert "toy epoch 1/4 step 4/6" in capsys.readouterr().err  # no terminal here: steps are shown as lines
    with pytest.raises(DataError), log.recording(tmp_path / "train.log"):
        raise DataError("what is wrong.")
    with pytest.raises(ZeroDivisionError), log.recording(tmp_path / "train.log"):
        raise ZeroDivisionError("division by zero")
    text = (tmp_path / "train.log").read_text()
    assert "ERROR what is wrong.\n" in text and "ERROR division by zero\nTraceback (most recent call last)" in text
    assert text.count("Traceback") == 1


class Gone:
    def write(self, text: str) -> None:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Gone(), None])
def test_training_outlives_its_terminal(stream: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", stream)
    log.set_up()
    logging.getLogger("ipiqa").info("hello")
    make_trainer(tmp_path).fit()
    assert (tmp_path / "last.pt").exists()


def test_an_undefined_evaluation_is_kept_out_of_the_best(tmp_path: Path) -> None:
    values = iter([1.0, float("nan"), 0.5, 2.0])
    trainer = make_trainer(
        tmp_path, loader=ToyLoader(), evaluate=lambda m: Evaluation(next(values), {}, torch.zeros(1, 1))
    )
    trainer.fit()
    assert trainer.progress.best_epoch == 4
