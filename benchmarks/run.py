"""Times the plain path against this framework in turns, and writes benchmarks/README.md, a plot and results.json.

    python benchmarks/run.py            everything, some twenty minutes on two cores
    python benchmarks/run.py --quick    one repeat of the 224 px cases, nothing written

A shared machine drifts, so only ratios taken side by side mean anything: each way of doing a case has a process of its
own (the framework sets the allocator of its process, which the plain path must not profit from), and they work in
turns, never at the same time.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import platform
import statistics
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from cases import CASES
from growth import by_folds, by_rows, peak_gib, seconds_of
from page import ratios, write_page

HERE = Path(__file__).resolve().parent
WARM_UP = 4  # rounds before the first timed one: until the process has all the memory it needs


def serve(case: str, variant: str, commands: Connection) -> None:
    """Makes the work of a variant in this process and does it each time it is told to, until told to stop."""
    work = CASES[case].make(variant)
    commands.send((work.images, work.flops))
    while commands.recv():
        commands.send(seconds_of(work.run))
    commands.send(peak_gib())


def time_case(name: str, repeats: int, warm_up: int) -> dict[str, Any]:
    """Returns seconds of each repeat, peak memory in GiB and floating-point operations of one repeat, by variant."""
    context = multiprocessing.get_context("spawn")
    pipes, facts = {}, {}
    for variant in CASES[name].variants:
        pipes[variant], theirs = context.Pipe()
        context.Process(target=serve, args=(name, variant, theirs), daemon=False).start()
        facts[variant] = pipes[variant].recv()
    seconds: dict[str, list[float]] = {variant: [] for variant in pipes}
    for repeat in range(warm_up + repeats):
        for variant, pipe in pipes.items():
            pipe.send(True)
            spent = pipe.recv()
            if repeat >= warm_up:
                seconds[variant].append(spent)
    memory = {}
    for variant, pipe in pipes.items():
        pipe.send(False)
        memory[variant] = pipe.recv()
    timing = {"name": name, "images": facts["plain"][0], "seconds": seconds, "memory": memory}
    timing["flops"] = {variant: flops for variant, (_, flops) in facts.items()}
    _print(timing)
    return timing


def _print(timing: dict[str, Any]) -> None:
    """Prints a timing as it comes."""
    seconds = timing["seconds"]
    parts = [
        f"{v} {timing['images'] / statistics.median(s):.1f} images/s {timing['memory'][v]:.2f} GiB"
        for v, s in seconds.items()
    ]
    shown = [f"{v} x{statistics.median(ratios(seconds, v)):.2f}" for v in seconds if v != "plain"]
    print(f"{timing['name']}: {', '.join(parts)}; {', '.join(shown)}", flush=True)


def ceilings() -> dict[str, float]:
    """Returns the machine's matrix products in GFLOP/s, fp32 and bf16: the best of several."""
    out = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
        best = min(seconds_of(lambda a=a, b=b: a @ b) for _ in range(12))
        out[name] = 2 * 2048**3 / best / 1e9
    return out


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one repeat of the 224 px cases, nothing written")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.quick:
        for name in CASES:
            if "batch 8" not in name:
                time_case(name, repeats=1, warm_up=2)
        return
    found = {
        "date": datetime.date.today().isoformat(),  # noqa: DTZ011 (the day where the machine is)
        "machine": f"{torch.get_num_threads()} threads of {_processor()}, PyTorch {torch.__version__}",
        "ceilings": ceilings(),
        "timings": [time_case(name, arguments.repeats, WARM_UP) for name in CASES],
        "rows": by_rows([1000, 3000, 20000]),
        "folds": by_folds([1, 2, 4]),
    }
    (HERE / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    write_page(HERE, found)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
