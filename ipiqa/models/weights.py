"""Reading tensor files that nobody has to trust: no code of a file is ever run.

OpenAI publishes its CLIP weights as TorchScript archives. `torch.jit.load` would compile and may run the code inside,
so the archive's tensors are read here by a restricted unpickler instead.
"""

import codecs
import contextlib
import functools
import io
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ipiqa.errors import DataError
from ipiqa.files import CodeInFileError, content_sha256, read_data, refuse_newer, replacing
from ipiqa.registry import file_path

OPENAI_RN50_SHA256 = "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"
OPENAI_RN50_URL = f"https://openaipublic.azureedge.net/clip/models/{OPENAI_RN50_SHA256}/RN50.pt"
OPENAI_RN50_HINT = f"OpenAI's RN50.pt is at {OPENAI_RN50_URL}; see cache/README.md."

MOST_PACKED = 8  # times its size on disk that a zipped file may unpack to; torch packs nothing

Tensors = dict[str, torch.Tensor]


def read_tensors(path: str | Path, where: str, sha256: str | None = None, hint: str = OPENAI_RN50_HINT) -> Tensors:
    """Returns the tensors of a weights file by name, on the CPU, in the types they are stored in.

    Reads TorchScript archives (as OpenAI publishes them), files of `torch.save` holding a state dict, bare or under
    "model" or "state_dict", and safetensors. The last two files are kept: both towers of every fold ask for them.

    A file that is missing, damaged, of another kind, or not the one the hash belongs to is a DataError: it says
    `where`, the setting that names the file, and with `hint` where such a file comes from.
    """
    with _existing_file(path, where, hint) as file:
        status = file.stat()
        return dict(_kept_tensors(file, sha256, status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns))


def read_checkpoint_file(path: str | Path, where: str, hint: str) -> tuple[Tensors, dict[str, Any]]:
    """Returns (tensors by name, everything else that lies beside them); arguments and errors as for `read_tensors`."""
    with _existing_file(path, where, hint) as file:
        return _read_by_kind(file)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes tensors as safetensors, atomically."""
    from safetensors.torch import save

    with replacing(path, "wb") as file:
        file.write(save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata))


def renamed(tensors: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Returns tensors with the first of the prefixes that each name has replaced; other names stay as they are."""
    out = {}
    for name, value in tensors.items():
        prefix = next((p for p in names if name.startswith(p)), "")
        out[names.get(prefix, "") + name.removeprefix(prefix)] = value
    return out


def printable(text: object) -> str:
    r"""Returns a text that somebody else chose as it can stand in one line.

    >>> printable("ä\0\n")
    'ä\\x00\\n'
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text)[:400])


def one_line(error: Exception) -> str:
    """Returns what an exception of another package says, in one short line."""
    return printable(" ".join(str(error).split())[:120]) or type(error).__name__


@contextlib.contextmanager
def _existing_file(path: str | Path, where: str, hint: str) -> Iterator[Path]:
    """Yields the path, its "~" replaced; any error of the block becomes a DataError of one line."""
    path = Path(file_path(str(path), where))
    try:
        if not os.path.isfile(path):  # noqa: PTH113 (is_file raises where a whole path is too long)
            raise DataError("is a folder" if os.path.isdir(path) else "does not exist")  # noqa: PTH112
        yield path
    except Exception as error:  # every reader has its own for damaged files; the cause is the same to the user
        problem = str(error).rstrip(".")
        if isinstance(error, CodeInFileError):
            problem = f"was refused: {error}. A weights file holds tensors only"
        elif not isinstance(error, DataError):
            problem = f"cannot be read: it is damaged or no weights file ({one_line(error)})"
        raise DataError(f"{where}: '{printable(path)}' {problem}. {hint}") from None


@functools.lru_cache(maxsize=2)
def _kept_tensors(path: Path, sha256: str | None, *_version: int) -> Tensors:
    if sha256 is not None and (digest := content_sha256([path])[0]) != sha256.lower():
        raise DataError(f"has sha256 {digest}, not {sha256}. Set sha256: null to use it as it is")
    return _read_by_kind(path)[0]


def _read_by_kind(path: Path) -> tuple[Tensors, dict[str, Any]]:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise DataError("is empty")
    is_safetensors = head[8:9] == b"{" and int.from_bytes(head[:8], "little") + 8 <= size
    if not is_safetensors and head.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"<":
        raise DataError("is a web page, not weights: the download went wrong")
    if is_safetensors or path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path), {}
    if head[:2] == b"PK":
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > MOST_PACKED * size + 2**20:
                raise DataError(f"unpacks to {unpacked / 1e9:.1f} GB, which weights do not")
            names = archive.namelist()
            if any(n.endswith("/constants.pkl") for n in names) and any("/code/" in n for n in names):
                root = next(n for n in names if n.endswith("/data.pkl")).rsplit("/", 1)[0]
                return _checked(_TorchScriptUnpickler(archive, root).load().tensors()), {}
    content = read_data(path)
    refuse_newer(content, "cannot be read:")
    state = content = content if isinstance(content, Mapping) else {}
    for key in ("model", "state_dict"):
        state = state[key] if isinstance(state.get(key), Mapping) else state
    tensors = {str(k).removeprefix("module."): v for k, v in state.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        raise DataError("holds no state dict. Give a mapping of names to tensors, bare or under 'model'")
    return _checked(tensors), {str(key): value for key, value in content.items() if key != "model"}


def _checked(tensors: Tensors) -> Tensors:
    """Returns the tensors, all of them plain numbers that are really there; DataError names the first that is not."""
    for name, value in tensors.items():
        is_plain = value.layout == torch.strided and not (value.is_nested or value.is_quantized or value.is_meta)
        if not is_plain or value.is_complex() or value.nbytes > value.untyped_storage().nbytes():
            raise DataError(f"holds the tensor {printable(name)!r}, which is no plain array of real numbers")
    return tensors


class _Node:
    """Stands for a TorchScript module or object: its attributes and nothing else."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def tensors(self, prefix: str = "") -> Tensors:
        """Returns its tensors and those of the nodes below by their dotted names."""
        state = self.state if isinstance(self.state, dict) else {}
        out = {f"{prefix}{name}": value for name, value in state.items() if isinstance(value, torch.Tensor)}
        for name, value in state.items():
            out |= value.tensors(f"{prefix}{name}.") if isinstance(value, _Node) else {}
        return out


def _rebuild_tensor(storage: torch.Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> torch.Tensor:
    return storage.as_strided(size, stride, offset)  # torch refuses what reaches outside the storage


_STORAGES = {
    "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16, "Double": torch.float64,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool,
}  # fmt: skip
_GLOBALS: dict[tuple[str, str], Any] = {("torch", f"{kind}Storage"): dtype for kind, dtype in _STORAGES.items()}
_GLOBALS["collections", "OrderedDict"] = OrderedDict
_GLOBALS["torch._utils", "_rebuild_tensor_v2"] = _rebuild_tensor


class _TorchScriptUnpickler(pickle.Unpickler):
    """Builds tensors and plain containers; every other global is refused."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))
        self._archive, self._root = archive, root
        self._storages: dict[str, torch.Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Node
        if module == "torch.jit._pickle":  # typed lists and dictionaries: the value comes first, its type behind it
            return lambda value, *_: value
        if (module, name) in _GLOBALS:
            return _GLOBALS[module, name]
        raise CodeInFileError(f"it asks for {printable(module)}.{printable(name)} to be run")

    def persistent_load(self, pid: Any) -> torch.Tensor:
        _, dtype, key, *_ = pid
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._root}/data/{key}"))
            self._storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self._storages[key]


def convert_to_safetensors(source: str | Path, target: str | Path) -> int:
    """Writes the tensors of a weights file as safetensors and returns their number."""
    tensors = read_tensors(source, "convert-clip")
    write_tensors(Path(target), tensors, {"source": json.dumps(Path(source).name)})
    return len(tensors)
