"""Turns the results of run.py into benchmarks/README.md and benchmarks/ratios.svg."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

LABELS = {"exact": "exact fp32", "bf16": "bf16"}
COLOURS = {"exact": "#3b6ea5", "bf16": "#c2703d"}


def spread(values: list[float], digits: int = 2) -> str:
    """Returns "median (lowest to highest)"."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def ratios(seconds: dict[str, list[float]], variant: str) -> list[float]:
    """Returns plain / variant, repeat by repeat."""
    return [a / b for a, b in zip(seconds["plain"], seconds[variant], strict=True)]


def timing_rows(found: dict[str, Any]) -> list[str]:
    """Returns the table of timings in markdown."""
    lines = [
        "| work | path | images/s | ratio to plain: median (lowest to highest) | peak memory | share of matmul ceiling |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for timing in found["timings"]:
        for variant, spent in timing["seconds"].items():
            rate = f"{timing['images'] / statistics.median(spent):.1f}"
            ratio = "1" if variant == "plain" else f"**{spread(ratios(timing['seconds'], variant))}**"
            ceiling = found["ceilings"]["bf16" if variant == "bf16" else "fp32"]
            flops = timing["flops"][variant]
            share = f"{100 * flops / statistics.median(spent) / 1e9 / ceiling:.0f} %" if flops else ""
            memory = f"{timing['memory'][variant]:.2f} GiB"
            lines.append(
                f"| {timing['name']} | {LABELS.get(variant, variant)} | {rate} | {ratio} | {memory} | {share} |"
            )
    return lines


def growth_rows(rows: list[dict[str, float]]) -> list[str]:
    """Returns a table of what was measured at several sizes in markdown; the first column is the size."""
    names = list(rows[0])
    lines = [f"| {' | '.join(names)} |", "|" + " --- |" * len(names)]
    for row in rows:
        shown = [f"{row[name]:,.2f}{'' if 'GiB' in name or name == 'seconds' else ' s'}" for name in names[1:]]
        lines.append(f"| {row[names[0]]:,} | {' | '.join(shown)} |")
    return lines


def plot(found: dict[str, Any]) -> str:
    """Returns a bar chart of the ratios as SVG; the line across each bar spans the repeats."""
    bars = [(t["name"], v, ratios(t["seconds"], v)) for t in found["timings"] for v in t["seconds"] if v != "plain"]
    shown = [
        (name, v, r) for name, v, r in bars if statistics.median(r) < 20
    ]  # the input pipeline has a scale of its own
    longest = max(max(r) for _, _, r in shown)
    width, left, row = 760, 250, 26
    scale = (width - left - 130) / longest
    height = 50 + row * len(shown)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" rx="8" fill="#fff"/>',
        '<text x="16" y="24" font-weight="bold" fill="#222">Times as fast as the plain path, same run</text>',
    ]
    for i, (name, variant, values) in enumerate(shown):
        y, middle = 40 + row * i, statistics.median(values)
        out += [
            f'<text x="{left - 8}" y="{y + 14}" text-anchor="end" fill="#222">{name}</text>'
            if variant == "exact"
            else "",
            f'<rect x="{left}" y="{y}" width="{middle * scale:.1f}" height="{row - 8}" fill="{COLOURS[variant]}"/>',
            f'<line x1="{left + min(values) * scale:.1f}" x2="{left + max(values) * scale:.1f}" y1="{y + 9}" y2="{y + 9}" '
            'stroke="#222"/>',
            f'<text x="{left + max(values) * scale + 6:.1f}" y="{y + 14}" fill="#222">{middle:.2f} {LABELS[variant]}</text>',
        ]
    return "\n".join([line for line in out if line] + ["</svg>"]) + "\n"


def write_page(folder: Path, found: dict[str, Any]) -> None:
    """Writes README.md and ratios.svg; what stands behind the line `<!-- notes -->` of an earlier page is kept."""
    path = folder / "README.md"
    notes = path.read_text(encoding="utf-8").partition("<!-- notes -->")[2] if path.exists() else "\n"
    lines = [
        "# Speed",
        "",
        f"Measured on {found['date']}: {found['machine']}. Written by `python benchmarks/run.py`; every way of doing a",
        f"piece of work had a process of its own, and they took turns, {len(found['timings'][0]['seconds']['plain'])} times each, so that the ratios hold where absolute",
        "times drift.",
        "",
        "*Plain* is what the reference code computes, written by us (`plain.py`): full context, all queries of the",
        "attention pool, contiguous tensors, fp32, images decoded for every epoch. *Exact* is this framework as it comes, *bf16* with `run.amp=bf16`.",
        "",
        "![Ratios to the plain path](ratios.svg)",
        "",
        *timing_rows(found),
        "",
        f"The machine's own matrix product (2048 x 2048): {found['ceilings']['fp32']:.0f} GFLOP/s in fp32, "
        f"{found['ceilings']['bf16']:.0f} in bf16.",
        "",
        "The share counts the operations that each path really does, forward and backward. The memory is the peak of the",
        "whole process, PyTorch included.",
        "",
        "What a run costs before its first step, by number of images (64 px files):",
        "",
        *growth_rows(found["rows"]),
        "",
        "A small run (tiny encoders, 300 images, three epochs) by number of folds, from config to scores:",
        "",
        *growth_rows(found["folds"]),
        "",
        "<!-- notes -->",
    ]
    path.write_text("\n".join(lines) + notes, encoding="utf-8")
    (folder / "ratios.svg").write_text(plot(found), encoding="utf-8")


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    write_page(here, json.loads((here / "results.json").read_text()))
