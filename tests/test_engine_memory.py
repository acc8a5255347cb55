"""The allocator keeps what a training step frees, and the image cache takes no memory of a process's own."""

from __future__ import annotations

import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

needs_linux = pytest.mark.skipif(platform.system() != "Linux", reason="reads what Linux counts of a process")


def run_alone(code: str, *arguments: str) -> list[float]:
    """Returns the numbers that a program prints, run in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return [float(word) for word in done.stdout.split()]


@needs_linux
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has this allocator")
def test_freed_memory_is_kept_for_the_next_tensor() -> None:
    code = """
        import resource, torch
        from ipiqa.build import keep_freed_memory
        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            torch.zeros(16 << 20)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        faults()
        before = faults()
        kept = keep_freed_memory()
        # glibc finds a freed block for an aligned one only when it is a little larger, so the heap grows a few times.
        print(before, int(kept), min(faults() for _ in range(30)))
    """
    before, kept, after = run_alone(code)
    assert kept == 1 and before > 1000 and after < before / 10


@needs_linux
def test_the_cache_takes_no_private_memory_of_a_worker(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        import numpy as np
        from ipiqa.datasets.checks import image_hashes
        from ipiqa.datasets.image_cache import CachedImages, open_images
        from ipiqa.datasets.table import AnnotationTable
        from ipiqa.processors.image import SquashProcessor
        from PIL import Image
        folder = Path(sys.argv[1])
        names = tuple(f"{i}.png" for i in range(64))
        for i, name in enumerate(names):
            Image.new("RGB", (8, 8), (i, i, i)).save(folder / name)
        table = AnnotationTable(names, names, np.zeros((64, 1)), ("quality",), names, folder)
        def own():
            lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
            return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024
        given = table, image_hashes(table), SquashProcessor(400)
        open_images(*given, cache_dir=folder, limit_gb=1)
        images = open_images(*given, cache_dir=folder, limit_gb=1)
        assert isinstance(images, CachedImages)
        images.batch(np.array([0]))
        before = own()
        total = sum(int(images.batch(np.array([i]))[0, 0, 0, 0]) for i in range(64))
        print(total, own() - before)
    """
    total, added_mib = run_alone(code, str(tmp_path))
    assert total == sum(range(64))
    assert added_mib < 5  # of 29 MiB
