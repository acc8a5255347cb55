"""Weights and checkpoints that are spoilt in one way each, and files that try to run something."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bad_inputs import PAGE, Case, Spoil, Toy, words

# ------------------------------------------------------------------------------------------------------------- weights


def image_weights(make: Callable[[Toy, Path], object], name: str = "RN50.pt", *extra: str) -> Spoil:
    """Returns a spoil that makes a file and names it as the image tower's weights."""

    def spoil(toy: Toy) -> list[str]:
        make(toy, toy.folder / name)
        return [f"model.image_encoder.weights={toy.folder / name}", *words(*extra)(toy)]

    return spoil


def holding(content: bytes) -> Callable[[Toy, Path], object]:
    return lambda toy, path: path.write_bytes(content)


def tensors(content: Any) -> Callable[[Toy, Path], object]:
    return lambda toy, path: torch.save(content, path)


def zipped(**members: bytes) -> bytes:
    """Returns a zip file; in the names, "__" stands for "/" and "_pkl" for ".pkl"."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/").replace("_pkl", ".pkl"), content)
    return file.getvalue()


def npy(content: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, content, allow_pickle=True)
    return file.getvalue()


WEIGHTS_KEY = "model.image_encoder.weights: '{folder}/RN50.pt'"
PART = {"visual.layer1.0.conv1.weight": torch.ones(4, 4, 1, 1)}
WEIGHTS = [
    Case("missing weights", image_weights(lambda toy, path: None), WEIGHTS_KEY + " does not exist."),
    Case("page for weights", image_weights(holding(PAGE)), WEIGHTS_KEY + " is a web page"),
    Case("zip of something else", image_weights(holding(zipped(readme=b"hello"))), WEIGHTS_KEY + " cannot be read"),
    Case("a part of a tower", image_weights(tensors(PART)), WEIGHTS_KEY),
]


# --------------------------------------------------------------------------------------------------------- checkpoints


def best(toy: Toy) -> dict[str, Any]:
    """Returns the content of a real checkpoint of this model."""
    content: dict[str, Any] = torch.load(toy.run_dir / "fold_00" / "best.pt", weights_only=True)
    return content


def evaluating(make: Callable[[Toy, Path], object], *extra: str) -> Spoil:
    """Returns a spoil that makes a file and evaluates it as a checkpoint."""

    def spoil(toy: Toy) -> list[str]:
        path = toy.folder / "best.pt"
        make(toy, path)
        return ["run.evaluate=true", f"run.checkpoint={path}", *extra]

    return spoil


def real(toy: Toy, path: Path) -> None:
    shutil.copy(toy.run_dir / "fold_00" / "best.pt", path)


def half(toy: Toy, path: Path) -> None:
    content = (toy.run_dir / "fold_00" / "best.pt").read_bytes()
    path.write_bytes(content[: len(content) // 2])


def of_format(number: Any) -> Callable[[Toy, Path], object]:
    return lambda toy, path: torch.save(best(toy) | {"format": number}, path)


CHECKPOINTS = [
    Case("missing checkpoint", evaluating(lambda toy, path: None), "run.checkpoint: '{folder}/best.pt' does not"),
    Case("folder without folds", evaluating(lambda toy, path: path.mkdir()), "run.checkpoint: '{folder}/best.pt"),
    Case("other model", evaluating(real, "model.name=image_only"), "run.checkpoint: '{folder}/best.pt'"),
    Case("newer format", evaluating(of_format(99)), "run.checkpoint: '{folder}/best.pt'"),
    Case("truncated checkpoint", evaluating(half), "run.checkpoint: '{folder}/best.pt'"),
    Case("table for a checkpoint", words("run.checkpoint={folder}/data.csv"), "run.checkpoint: '{folder}/data.csv'"),
]


def resuming(spoil: Callable[[Toy, Path], object], *extra: str) -> Spoil:
    """Returns a spoil that puts a stopped run into the toy, harms it and resumes it; it is handed fold 0's folder."""

    def spoilt(toy: Toy) -> list[str]:
        run_dir = toy.folder / "output" / "toy"
        shutil.copytree(toy.run_dir, run_dir)
        (run_dir / "fold_00" / "scores.json").unlink()
        spoil(toy, run_dir / "fold_00")
        return ["--resume", *extra]

    return spoilt


def last(content: bytes) -> Callable[[Toy, Path], object]:
    return lambda toy, fold: (fold / "last.pt").write_bytes(content)


RUN = "{folder}/output/toy"
RESUMED = [
    Case("nothing to resume", words("--resume"), RUN + ": there is no run to continue."),
    Case("run that is there", lambda toy: resuming(lambda *_: None)(toy)[1:], RUN + " already holds a run."),
    Case("other settings", resuming(lambda *_: None, "run.seed=7"), RUN + ": cannot be continued"),
    Case(
        "damaged config", resuming(lambda _, fold: (fold.parent / "config.yaml").write_bytes(b"\xff")), RUN + "/config"
    ),
    Case("truncated last.pt", resuming(lambda toy, fold: half(toy, fold / "last.pt")), RUN + "/fold_00/last.pt"),
    Case("page for last.pt", resuming(last(PAGE)), RUN + "/fold_00/last.pt"),
    Case("best for last.pt", resuming(lambda toy, fold: real(toy, fold / "last.pt")), RUN + "/fold_00/last.pt"),
]


# ------------------------------------------------------------------------------------- files that try to run something


class Payload:
    """Whoever unpickles one makes a file or a folder, which stands for whatever harm there may be."""

    def __init__(self, marker: Path, call: Callable[..., object] = Path.touch) -> None:
        self.marker, self.call = marker, call

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return self.call, (self.marker,)


MARKER = "the_payload_ran"


def raw_pickle(toy: Toy, protocol: int = 2) -> bytes:
    return pickle.dumps(Payload(toy.folder / MARKER), protocol)


def torch_file(toy: Toy, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save({"model": {"a": torch.ones(1), "b": Payload(toy.folder / MARKER)}}, file, **options)
    return file.getvalue()


def script_archive(toy: Toy) -> bytes:
    """Returns what looks like a TorchScript archive: reading it as one would unpickle the payload."""
    return zipped(a__data_pkl=raw_pickle(toy), a__constants_pkl=raw_pickle(toy), a__code__x=b"", a__version=b"3\n")


def harmful_checkpoint(toy: Toy) -> bytes:
    file = io.BytesIO()
    torch.save(
        torch.load(toy.run_dir / "fold_00" / "last.pt", weights_only=True) | {"extra": Payload(toy.folder / MARKER)},
        file,
    )
    return file.getvalue()


def objects(toy: Toy) -> bytes:
    return npy(np.array([Payload(toy.folder / MARKER)], dtype=object))


FORMS: dict[str, tuple[str, Callable[[Toy], bytes]]] = {
    "pickle": ("RN50.pt", raw_pickle),
    "system call": ("RN50.pt", lambda toy: pickle.dumps(Payload(toy.folder / MARKER, os.mkdir), 2)),
    "newest pickle": ("RN50.pt", lambda toy: raw_pickle(toy, 5)),
    "oldest pickle": ("RN50.pt", lambda toy: raw_pickle(toy, 0)),
    "torch file": ("RN50.pt", torch_file),
    "old torch file": ("RN50.pt", lambda toy: torch_file(toy, _use_new_zipfile_serialization=False)),
    "script archive": ("RN50.pt", script_archive),
    "pickle named safetensors": ("RN50.safetensors", raw_pickle),
    "torch file named safetensors": ("RN50.safetensors", torch_file),
    "numpy objects": ("RN50.npy", objects),
    "checkpoint": ("best.pt", harmful_checkpoint),
}
PLACES: dict[str, Callable[[Toy, Path], list[str]]] = {
    "image encoder": lambda toy, path: [f"model.image_encoder.weights={path}"],
    "prompt encoder": lambda toy, path: [f"model.prompt_encoder.weights={path}"],
    "checkpoint": lambda toy, path: [f"run.checkpoint={path}"],
    "resumed": lambda toy, path: resuming(lambda _, fold: shutil.copy(path, fold / "last.pt"))(toy),
}
