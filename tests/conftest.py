"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

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
    """Folder of reference numbers, stand-in weights and the real annotation tables; skips where it is absent."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "reference").is_dir():
        pytest.skip(f"reference material is absent: {folder} (numbers measured from the reference implementation)")
    return folder


@pytest.fixture(scope="session")
def standin(shared: Path) -> ModuleType:
    """The module that writes stand-ins for OpenAI's RN50.pt."""
    return _tool(shared, "standin_rn50")


@pytest.fixture(scope="session")
def reference_checkpoint(shared: Path) -> ModuleType:
    """The module that writes checkpoints named as the reference code does, and parity images."""
    return _tool(shared, "reference_checkpoint")


def _tool(shared: Path, name: str) -> ModuleType:
    sys.path.insert(0, str(shared / "tools"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="session")
def tiny_rn50(standin: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TorchScript archive of the released form, tiny."""
    path = tmp_path_factory.mktemp("weights") / "RN50.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; the released file is written in it all the same
        standin.archive(standin.state_dict(standin.TINY, 0), standin.TINY).save(str(path))
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
