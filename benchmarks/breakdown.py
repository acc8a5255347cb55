"""Prints where a training step at 224 px, batch 32 spends its time, by kind of operation.

python benchmarks/breakdown.py exact
python benchmarks/breakdown.py bf16
"""

from __future__ import annotations

import sys

from cases import VARIANTS, train_step
from torch.profiler import ProfilerActivity, profile

WARM_UP, MEASURED = 4, 3
KINDS = {
    "convolutions, forward": ("mkldnn_convolution",),
    "convolutions, backward": ("convolution_backward",),
    "BatchNorm": ("native_batch_norm", "native_batch_norm_backward"),
    "ReLU": ("threshold_backward", "clamp_min_", "clamp_min"),
    "matrix products (text tower, pools, head)": ("mm", "addmm", "bmm", "_scaled_dot_product"),
    "zeros (gradients of embedding and average pools)": ("fill_",),
    "copies and casts": ("copy_",),
    "AdamW": ("_fused_adamw_",),
}


def kind_of(operation: str) -> str:
    """Returns the row of the table that an operation belongs to."""
    name = operation.removeprefix("aten::")
    for kind, names in KINDS.items():
        if name in names or any(n.startswith("_scaled") and name.startswith(n) for n in names):
            return kind
    return "everything else"


def main() -> None:
    """Prints the table."""
    variant = sys.argv[1] if len(sys.argv) > 1 else "exact"
    if variant not in VARIANTS[1:]:
        raise SystemExit(f"breakdown.py: {variant!r} is no way of training. Give exact or bf16.")
    work = train_step(variant, 224, 32)
    for _ in range(WARM_UP):
        work.run()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(MEASURED):
            work.run()
    seconds: dict[str, float] = {}
    for event in found.key_averages():
        kind = kind_of(event.key)
        seconds[kind] = seconds.get(kind, 0.0) + event.self_cpu_time_total / 1e6 / MEASURED
    total = sum(seconds.values())
    print(f"| {variant}: part of a step | seconds | share |\n| --- | --- | --- |")
    for kind, spent in sorted(seconds.items(), key=lambda pair: -pair[1]):
        print(f"| {kind} | {spent:.2f} | {100 * spent / total:.0f} % |")
    print(f"| all | {total:.2f} | |")


if __name__ == "__main__":
    main()
