"""Reading tensor files that nobody has to trust: no code of a file is ever run.

OpenAI publishes its CLIP weights as TorchScript archives. `torch.jit.load` would compile and may run the code inside,
so the archive's tensors are read here by a restricted unpickler instead.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import logging
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ipiqa.errors import DataError
from ipiqa.files import CodeInFileError, read_data, refuse_newer

logger = logging.getLogger("ipiqa")

OPENAI_RN50_SHA256 = "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"
OPENAI_RN50_URL = f"https://openaipublic.azureedge.net/clip/models/{OPENAI_RN50_SHA256}/RN50.pt"
OPENAI_RN50_HINT = f"OpenAI's RN50.pt is at {OPENAI_RN50_URL}; see cache/README.md."

Tensors = dict[str, torch.Tensor]


def read_tensors(path: str | Path, where: str, sha256: str | None = None, hint: str = OPENAI_RN50_HINT) -> Tensors:
    """Returns the tensors of a weights file by name, on the CPU, in the types they are stored in.

    Reads TorchScript archives (as OpenAI publishes them), files of `torch.save` holding a state dict, bare or under
    "model" or "state_dict", and safetensors.

    Args:
        path: the file.
        where: the setting that names the file, for messages.
        sha256: what the file's hash must be, or None.
        hint: where such a file comes from, for messages.

    Raises:
        DataError: the file is missing, damaged, of another kind, or not the one the hash belongs to.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"{where}: '{path}' {what}. {hint}")
    if sha256 is not None:
        _check_sha256(path, sha256, where)
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise DataError(f"{where}: '{path}' is empty. {hint}")
    if head.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"<":
        raise DataError(f"{where}: '{path}' is a web page, not weights: the download went wrong. {hint}")
    try:
        return _read_by_kind(path, head)
    except CodeInFileError as refused:
        raise DataError(
            f"{where}: '{path}' was refused: {refused}. A weights file holds tensors only. {hint}"
        ) from None
    except DataError as error:
        raise DataError(f"{where}: '{path}' {error}") from None
    except Exception as error:
        # Every reader has its own exceptions for damaged files; the cause is the same to the user.
        reason = " ".join(str(error).split())[:120]
        what = f"it is damaged or no weights file ({reason or type(error).__name__})"
        raise DataError(f"{where}: '{path}' cannot be read: {what}. {hint}") from None


def _read_by_kind(path: Path, head: bytes) -> Tensors:
    if path.suffix == ".safetensors" or _is_safetensors(head):
        from safetensors.torch import load_file

        return load_file(path)
    if head[:2] == b"PK":
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if any(n.endswith("/constants.pkl") for n in names) and any("/code/" in n for n in names):
                return _read_torchscript(archive)
    return state_dict_of(read_data(path))


def state_dict_of(content: Any) -> Tensors:
    """Returns the state dict inside what `torch.load` returned: bare, or under "model" or "state_dict".

    Raises:
        DataError: there is none, or it is of a newer format.
    """
    if isinstance(content, Mapping):
        refuse_newer(content, "cannot be read:")
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not any(isinstance(v, torch.Tensor) for v in content.values()):
        raise DataError("holds no state dict. Give a mapping of names to tensors, bare or under 'model'.")
    return {str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, torch.Tensor)}


def _check_sha256(path: Path, expected: str, where: str) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)
    if digest != expected.lower():
        raise DataError(
            f"{where}: '{path}' has sha256 {digest}, not {expected}. "
            "Download it again, or set sha256: null to use it as it is."
        )
    logger.info("%s: sha256 of %s is as expected", where, path)


def _digest(file: io.BufferedReader) -> str:
    """Returns the hash of an open file; `hashlib.file_digest` came with Python 3.11."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _is_safetensors(head: bytes) -> bool:
    return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000


class _Node:
    """Stands for a TorchScript module or object: its attributes and nothing else."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


def _rebuild_tensor(storage: torch.Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> torch.Tensor:
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if math.prod(size) else offset
    if min((offset, *size, *stride)) < 0 or last >= max(storage.numel(), 1):
        raise ValueError("a tensor reaches outside its storage")
    return storage.as_strided(size, stride, offset)


_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def _first_argument(value: Any, *_: Any) -> Any:
    return value


class _TorchScriptUnpickler(pickle.Unpickler):
    """Builds tensors and plain containers; every other global is refused."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))
        self._archive, self._root = archive, root
        self._storages: dict[str, torch.Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Node
        allowed: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("collections", "OrderedDict"): OrderedDict,
        }
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch.jit._pickle":  # typed lists and dictionaries: the value comes first, its type behind it
            return _first_argument
        if (module, name) in allowed:
            return allowed[module, name]
        raise CodeInFileError(f"it asks for {module}.{name} to be run")

    def persistent_load(self, pid: Any) -> torch.Tensor:
        _, dtype, key, _, count = pid
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._root}/data/{key}"))
            storage = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            if storage.numel() < count:
                raise DataError("is cut off: a tensor is shorter than announced. Download it again.")
            self._storages[key] = storage
        return self._storages[key]


def _read_torchscript(archive: zipfile.ZipFile) -> Tensors:
    root = next(n for n in archive.namelist() if n.endswith("/data.pkl")).rsplit("/", 1)[0]
    tensors: Tensors = {}

    def collect(node: _Node, prefix: str) -> None:
        for name, value in node.state.items():
            if isinstance(value, torch.Tensor):
                tensors[prefix + name] = value
            elif isinstance(value, _Node):
                collect(value, f"{prefix}{name}.")

    collect(_TorchScriptUnpickler(archive, root).load(), "")
    return tensors


def convert_to_safetensors(source: str | Path, target: str | Path) -> int:
    """Writes the tensors of a weights file as safetensors, atomically, and returns their number.

    Raises:
        DataError: the source cannot be read.
    """
    import os

    from safetensors.torch import save_file

    tensors = {name: value.contiguous() for name, value in read_tensors(source, "convert-clip").items()}
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    save_file(tensors, temporary, metadata={"source": json.dumps(Path(source).name)})
    os.replace(temporary, target)
    return len(tensors)
