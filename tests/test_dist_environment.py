"""What torchrun sets, and what is left of it in an environment where it has not started this process."""

from __future__ import annotations

import pytest
import torch
from conftest import refused

from ipiqa import dist

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("stray", [{"RANK": "3"}, {"WORLD_SIZE": "8"}, {"RANK": "x", "WORLD_SIZE": "8"}])
def test_a_stray_rank_or_world_size_is_ignored_with_a_line(
    stray: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in stray.items():
        monkeypatch.setenv(name, value)
    assert (dist.rank(), dist.world_size(), dist.is_main()) == (0, 1, True)
    with dist.process_group(torch.device("cpu")):
        assert not torch.distributed.is_initialized()
    assert f"{' and '.join(stray)} ignored: " in caplog.text and "one process by itself" in caplog.text


@pytest.mark.parametrize(
    ("rank", "world_size", "message"),
    [("x", "2", "RANK='x' is not a whole number from 0"), ("0", "0", "WORLD_SIZE='0' is not a whole number from 1"),
     ("9" * 5000, "2", "is not a whole number"), ("2", "2", "RANK=2 with WORLD_SIZE=2"), ("5", "1", "RANK=5 with")],
)  # fmt: skip
def test_what_torchrun_never_sets_is_refused(
    rank: str, world_size: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", rank), ("WORLD_SIZE", world_size), ("MASTER_ADDR", "a"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    assert message in refused(dist.process_group(torch.device("cpu")).__enter__)
