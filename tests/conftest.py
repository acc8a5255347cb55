"""Fixtures shared by all tests."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from reference import standin

from ipiqa.errors import ConfigError, IpiqaError

torch.set_num_threads(1)

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def same_logger() -> Iterator[None]:
    """A command sets up the log of its process; here the next test needs it as it was."""
    logger = logging.getLogger("ipiqa")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder whose data/ holds the real annotation tables, which are not ours to publish; skips where it is absent."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"the real annotation tables are absent: {folder / 'data'}")
    return folder


@pytest.fixture(scope="session")
def tiny_rn50(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TorchScript archive of the released form, tiny."""
    path = tmp_path_factory.mktemp("weights") / "RN50.pt"
    standin.write_archive(path, standin.TINY)
    return path


def refused(call: Callable[[], object]) -> str:
    """Returns the one line that a call is refused with."""
    with pytest.raises(ConfigError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def error_of(call: Callable[[], object]) -> str:
    """Returns the one line that a call is refused with, or "" where it goes well; any other exception is raised."""
    try:
        call()
    except IpiqaError as error:
        assert "\n" not in str(error)  # noqa: PT017 (both ends are right)
        return str(error)
    return ""
