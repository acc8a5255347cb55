"""Weights and checkpoints that are spoilt in one way each, and files that try to run something."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import struct
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


def part_of_archive(share: float) -> Callable[[Toy, Path], object]:
    def make(toy: Toy, path: Path) -> None:
        assert toy.archive is not None
        content = toy.archive.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return make


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


def prompt_weights(toy: Toy) -> list[str]:
    torch.save(PART, toy.folder / "RN50.pt")
    return [f"model.prompt_encoder.weights={toy.folder / 'RN50.pt'}"]


WEIGHTS_KEY = "model.image_encoder.weights: '"
RN50 = "OpenAI's RN50.pt is at https://"
DAMAGED = (WEIGHTS_KEY, "cannot be read: it is damaged or no weights file", RN50)
OTHER = "Check that the weights and the model settings belong together."
CLIP = "model.image_encoder.name=clip"
PART = {"visual.layer1.0.conv1.weight": torch.ones(4, 4, 1, 1)}

WEIGHTS = [
    Case("missing weights", image_weights(lambda toy, path: None), (WEIGHTS_KEY, "RN50.pt' does not exist.", RN50)),
    Case("folder for weights", image_weights(lambda toy, path: path.mkdir()), (WEIGHTS_KEY, "is a folder.", RN50)),
    Case("empty weights", image_weights(holding(b"")), (WEIGHTS_KEY, "RN50.pt' is empty.", RN50)),
    Case(
        "page named pt", image_weights(holding(PAGE)), (WEIGHTS_KEY, "is a web page, not weights: the download", RN50)
    ),
    Case(
        "page with a mark", image_weights(holding(b"\xef\xbb\xbf" + PAGE)), (WEIGHTS_KEY, "is a web page, not weights")
    ),
    Case("page named safetensors", image_weights(holding(PAGE), "a.safetensors"), (WEIGHTS_KEY, "is a web page, not")),
    Case("message of an account", image_weights(holding(b"version https://git-lfs.github.com/spec/v1\n")), DAMAGED),
    Case("zip of something else", image_weights(holding(zipped(readme=b"hello"))), DAMAGED),
    Case("start of a zip", image_weights(holding(zipped(archive__data_pkl=b"x" * 999)[:500])), DAMAGED),
    Case("truncated archive", image_weights(part_of_archive(0.5)), DAMAGED, needs_archive=True),
    Case("truncated safetensors", image_weights(holding(struct.pack("<Q", 999) + b'{"a":'), "a.safetensors"), DAMAGED),
    Case("endless safetensors", image_weights(holding(b"\xff" * 8 + b"{}"), "a.safetensors"), DAMAGED),
    Case("numpy file", image_weights(holding(npy(np.ones(3))), "RN50.npy"), DAMAGED),
    Case(
        "no state dict", image_weights(tensors([1, 2])), (WEIGHTS_KEY, "holds no state dict. Give a mapping of names")
    ),
    Case(
        "wrong architecture",
        image_weights(part_of_archive(1)),
        (WEIGHTS_KEY, "tensors have another shape, first", OTHER),
        needs_archive=True,
    ),
    Case(
        "names of another model", image_weights(tensors({"conv.w": torch.ones(1)})), (WEIGHTS_KEY, "are missing, first")
    ),
    Case(
        "vision transformer",
        image_weights(tensors({"visual.proj": torch.ones(1)}), "RN50.pt", CLIP),
        (WEIGHTS_KEY, "RN50.pt' holds a vision transformer", "Name it: architecture: ViT-B-32-quickgelu"),
    ),
    Case("a part of a tower", image_weights(tensors(PART)), (WEIGHTS_KEY, "tensors are missing, first", OTHER)),
    Case("no text tower", prompt_weights, ("model.prompt_encoder.weights: '", "tensors are missing, first", OTHER)),
    Case(
        "wrong sha256",
        image_weights(tensors(PART), "RN50.pt", CLIP, f"model.image_encoder.sha256={'ab' * 32}"),
        (WEIGHTS_KEY, "RN50.pt' has sha256", f"not {'ab' * 32}. Download it again, or set sha256: null"),
    ),
    Case(
        "not a number",
        image_weights(tensors({"model": {"a": float("nan")}})),
        (WEIGHTS_KEY, "holds no state dict. Give"),
    ),
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


CHECKPOINT = "run.checkpoint: '"
GIVE = "Give a checkpoint, a bundle, or a run folder with the best.pt of every fold."

CHECKPOINTS = [
    Case(
        "missing checkpoint",
        evaluating(lambda toy, path: None),
        (CHECKPOINT, "best.pt' does not exist. Give a checkpoint, a bundle"),
    ),
    Case(
        "folder without folds",
        evaluating(lambda toy, path: path.mkdir()),
        (CHECKPOINT, "fold_00/best.pt' does not exist. Give a checkpoint, a bundle"),
    ),
    Case(
        "other model",
        evaluating(real, "model.name=image_only"),
        (CHECKPOINT, "belongs to another model: model.name is 'image_only'"),
    ),
    Case(
        "other fusion",
        evaluating(real, "model.fusion.name=concatenation"),
        (CHECKPOINT, "another model: model.fusion.name is"),
    ),
    Case("other head", evaluating(real, "model.head.name=linear"), (CHECKPOINT, "another model: model.head.name is")),
    Case(
        "other width",
        evaluating(real, "model.prompt_encoder.width=16"),
        (CHECKPOINT, "model.prompt_encoder.width is 16, not 8."),
    ),
    Case("other image size", evaluating(real, "image_size=64"), (CHECKPOINT, "image_size is 64, not 32.")),
    Case(
        "newer format",
        evaluating(of_format(99)),
        (CHECKPOINT, "cannot be read: format 99 is newer than this version reads (1). Update"),
    ),
    Case("truncated checkpoint", evaluating(half), (CHECKPOINT, "it is damaged or no weights file", GIVE)),
    Case("page for a checkpoint", evaluating(holding(PAGE)), (CHECKPOINT, "is a web page, not weights", GIVE)),
    Case("empty checkpoint", evaluating(holding(b"")), (CHECKPOINT, "is empty.", GIVE)),
    Case(
        "scores for a checkpoint",
        evaluating(holding(b'{"format": 1}')),
        (CHECKPOINT, "damaged or no weights file", GIVE),
    ),
    Case(
        "table for a checkpoint",
        words("run.checkpoint={folder}/data.csv"),
        (CHECKPOINT, "damaged or no weights file", GIVE),
    ),
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


def another_prompt(toy: Toy, fold: Path) -> None:
    rows = toy.rows()
    toy.write_rows([[name, text.replace("red", "pink"), *scores] for name, text, *scores in rows])


def finished(toy: Toy, fold: Path) -> None:
    shutil.copy(toy.run_dir / "fold_00" / "scores.json", fold)


ANEW = "Delete it to start this fold anew."
BACK = "Set these back, or choose another run.output_dir."
RESUMED = [
    Case("nothing to resume", words("--resume"), ("output/toy: there is no run to continue. Leave out --resume",)),
    Case(
        "run that is there", lambda toy: resuming(finished)(toy)[1:], ("output/toy already holds a run. Continue it",)
    ),
    Case(
        "other seed",
        resuming(lambda toy, fold: None, "run.seed=7"),
        ("output/toy: cannot", "run.seed was 42, is 7", BACK),
    ),
    Case("other split", resuming(lambda toy, fold: None, "split.seed=2"), ("split.seed was 1, is 2", BACK)),
    Case("other epochs", resuming(lambda toy, fold: None, "run.max_epochs=9"), ("run.max_epochs was 1, is 9", BACK)),
    Case("other loss", resuming(lambda toy, fold: None, "task.loss=l1"), ("task.loss was 'mse', is 'l1'", BACK)),
    Case(
        "other table", resuming(another_prompt), ("fold_00: cannot be continued", "the annotation table (sha256)", BACK)
    ),
    Case(
        "other image",
        resuming(lambda toy, fold: toy.image.write_bytes(toy.image.read_bytes() + b"\0")),
        ("fold_00: cannot be continued", "the image files (sha256)", BACK),
    ),
    Case(
        "damaged config",
        resuming(lambda toy, fold: (fold.parent / "config.yaml").write_bytes(b"\xff")),
        ("config.yaml",),
    ),
    Case("truncated last.pt", resuming(lambda toy, fold: half(toy, fold / "last.pt")), ("last.pt: damaged", ANEW)),
    Case("empty last.pt", resuming(last(b"")), ("last.pt: damaged", ANEW)),
    Case("page for last.pt", resuming(last(PAGE)), ("last.pt: damaged", ANEW)),
    Case(
        "newer last.pt",
        resuming(lambda toy, fold: of_format(99)(toy, fold / "last.pt")),
        ("last.pt: format 99", "Update"),
    ),
    Case(
        "odd last.pt",
        resuming(lambda toy, fold: of_format([])(toy, fold / "last.pt")),
        ("last.pt: not a checkpoint of this framework.",),
    ),
    Case(
        "best for last.pt",
        resuming(lambda toy, fold: real(toy, fold / "last.pt")),
        ("last.pt: holds weights but not the state of a training", ANEW),
    ),
    Case(
        "weights for last.pt", resuming(lambda toy, fold: torch.save(PART, fold / "last.pt")), ("last.pt: not a check",)
    ),
    Case(
        "list for last.pt",
        resuming(lambda toy, fold: torch.save([1], fold / "last.pt")),
        ("last.pt: not a checkpoint",),
    ),
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
