"""Several processes: the torchrun environment, and the few collective operations the framework needs."""

import contextlib
import datetime
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist

from ipiqa.errors import ConfigError, IpiqaError

logger = logging.getLogger("ipiqa")

# What torchrun gives every process. One without the others is a leftover of something else: the process is then alone.
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def _number(name: str, default: int, lowest: int = 0) -> int:
    """Returns a whole number that torchrun has set, or the default where it has not started this process."""
    if name not in os.environ or any(needed not in os.environ for needed in _NEEDED):
        return default
    text = os.environ[name]
    if not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) < lowest:
        problem = f"environment: {name}={text[:40]!r} is not a whole number from {lowest}"
        raise ConfigError(f"{problem}. Unset it, or start with torchrun.")
    return int(text)


def rank() -> int:
    """Returns the number of this process among all processes, 0 when it is alone."""
    return _number("RANK", 0)


def local_rank() -> int:
    """Returns the number of this process on its machine, 0 when it is alone."""
    return _number("LOCAL_RANK", 0)


def world_size() -> int:
    """Returns the number of processes, 1 when torchrun did not start this one."""
    return _number("WORLD_SIZE", 1, lowest=1)


def is_main() -> bool:
    """Returns whether this process writes the files and the log."""
    return rank() == 0


def restarts() -> int:
    """Returns how often torchrun has started this job again after a process had failed (`--max-restarts`)."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0)


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the processes torchrun started (nccl on GPU, gloo on CPU) for the duration of the block.

    Inside another such block nothing happens: several runs of one process stay joined from the first to the last.
    An environment that contradicts itself is a ConfigError.
    """
    if rank() >= world_size():
        problem = f"environment: RANK={rank()} with WORLD_SIZE={world_size()}"
        raise ConfigError(f"{problem}. Ranks are counted from 0; start with torchrun.")
    missing = ", ".join(name for name in _NEEDED if name not in os.environ)
    stray = " and ".join(name for name in ("RANK", "WORLD_SIZE") if name in os.environ)
    if stray and missing:
        logger.warning("%s ignored: %s not set, so this is one process by itself", stray, missing)
    if world_size() == 1 or dist.is_initialized():
        yield
        return
    backend, timeout = "nccl" if device.type == "cuda" else "gloo", datetime.timedelta(minutes=30)
    store, number, count = next(dist.rendezvous("env://", timeout=timeout))  # type: ignore[attr-defined]
    # torchrun's own store outlives the processes: without a name for each life, the second one would find the
    # addresses of the first.
    store = dist.PrefixStore(f"ipiqa/{restarts()}", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=timeout)
    try:
        yield
    finally:
        dist.destroy_process_group()


def gather(value: Any) -> list[Any]:
    """Returns the values of all processes, by rank, on every process."""
    if world_size() == 1:
        return [value]
    out: list[Any] = [None] * world_size()
    dist.all_gather_object(out, value)
    return out


def from_main(value: Any) -> Any:
    """Returns the value rank 0 holds, on every process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def on_main(action: Callable[[], Any]) -> Any:
    """Runs an action on rank 0 alone and returns there what it returned, elsewhere None; all raise its IpiqaError."""
    value = error = None
    if is_main():
        try:
            value = action()
        except IpiqaError as caught:
            error = caught
    error = from_main(error)
    if error is not None:
        raise error
    return value


def check_equal(values: Mapping[str, Any]) -> None:
    """Raises ConfigError on every process where named values differ between processes, with what differs and where."""
    first, *others = gather(dict(values))
    for number, other in enumerate(others, 1):
        names = [n for n in first | other if first.get(n) != other.get(n)]
        if names:
            changes = "; ".join(f"{n} is {first.get(n)!r} and {other.get(n)!r}" for n in names)
            raise ConfigError(f"processes 0 and {number} differ: {changes}. Start all processes with the same command.")


def any_process(flag: bool, device: torch.device) -> bool:
    """Returns whether the flag is set on at least one process."""
    if world_size() == 1:
        return flag
    total = torch.tensor(int(flag), device=device)
    dist.all_reduce(total, op=dist.ReduceOp.MAX)
    return bool(total.item())


def broadcast_buffers(module: torch.nn.Module) -> None:
    """Gives every process the buffers of rank 0, so that BatchNorm evaluates with the same statistics everywhere."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def barrier() -> None:
    """Waits until every process is here."""
    if world_size() > 1:
        dist.barrier()
