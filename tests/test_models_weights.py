"""Weights files of every kind, and files that only look like them."""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import standin
from safetensors.torch import save_file

from ipiqa.errors import DataError, IpiqaError
from ipiqa.models import weights
from ipiqa.models.towers.clip_image import clip_image_encoder
from ipiqa.models.towers.clip_text import clip_prompt_encoder
from ipiqa.models.weights import convert_to_safetensors, read_tensors


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_torchscript_archive_gives_the_tensors_torch_jit_would(tiny_rn50: Path) -> None:
    found = read_tensors(tiny_rn50, "w")
    expected = torch.jit.load(str(tiny_rn50)).state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value) and found[name].dtype == value.dtype, name


def test_archive_state_dict_and_safetensors_build_the_same_towers(tiny_rn50: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": standin.state_dict(standin.TINY, 0)}, tmp_path / "plain.pt")
    assert convert_to_safetensors(tiny_rn50, tmp_path / "clip.safetensors") == 156
    towers = []
    for path in (tiny_rn50, tmp_path / "plain.pt", tmp_path / "clip.safetensors"):
        image, text = clip_image_encoder(96, weights=str(path)), clip_prompt_encoder(weights=str(path))
        assert image.embed_dim == text.embed_dim == 64 and image.grid == (3, 3)
        towers.append({**image.state_dict(), **text.state_dict()})
    for other in towers[1:]:
        assert all(torch.equal(value, other[name]) for name, value in towers[0].items())


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.path,)


def test_malicious_pickles_are_refused_and_do_not_run(tiny_rn50: Path, tmp_path: Path) -> None:
    payload = tmp_path / "it_ran"
    torch.save({"model": {"a": torch.ones(1), "b": Payload(payload)}}, tmp_path / "evil.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Payload(payload), protocol=2))
    with zipfile.ZipFile(tiny_rn50) as source, zipfile.ZipFile(tmp_path / "evil_script.pt", "w") as target:
        for name in source.namelist():
            content = pickle.dumps(Payload(payload)) if name.endswith("/data.pkl") else source.read(name)
            target.writestr(name, content)
    for name in ("evil.pt", "bare.pt", "evil_script.pt"):
        with pytest.raises(DataError, match="refused|cannot be read"):
            read_tensors(tmp_path / name, "w")
    assert not payload.exists()


def test_tensor_that_reaches_outside_its_storage_is_refused(tiny_rn50: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tiny_rn50) as source, zipfile.ZipFile(tmp_path / "cut.pt", "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name)[:4] if name.endswith("/data/0") else source.read(name))
    with pytest.raises(DataError, match="it is damaged"):
        read_tensors(tmp_path / "cut.pt", "w")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "is a web page, not weights"),
        (b"PK\x03\x04 cut off", "damaged or no weights file"),
        (b"just text", "damaged or no weights file"),
    ],
)
def test_files_that_are_no_weights_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "RN50.pt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_tensors(path, "model.image_encoder.weights")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file_names_the_source_and_a_truncated_one_is_found(tiny_rn50: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist. OpenAI's RN50.pt is at https://"):
        read_tensors(tmp_path / "none.pt", "w")
    with pytest.raises(DataError, match="is a folder"):
        read_tensors(tmp_path, "w")
    (tmp_path / "cut.pt").write_bytes(tiny_rn50.read_bytes()[:100_000])
    with pytest.raises(DataError, match="damaged"):
        read_tensors(tmp_path / "cut.pt", "w")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(DataError, match="holds no state dict"):
        read_tensors(tmp_path / "list.pt", "w")


ODD_TENSORS = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "csr": lambda: torch.eye(3).to_sparse_csr(),
    "meta": lambda: torch.empty(3, device="meta"),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "complex": lambda: torch.ones(3, dtype=torch.complex64),
    "huge": lambda: torch.ones(1).expand(1_000_000_000_000),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_tensors_that_are_no_plain_numbers_are_refused(kind: str, tmp_path: Path) -> None:
    torch.save({"w": ODD_TENSORS[kind]()}, tmp_path / "odd.pt")
    with pytest.raises(DataError, match=r"holds the tensor 'w'|cannot be read") as caught:
        read_tensors(tmp_path / "odd.pt", "w")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text_projection", torch.tensor(1.0)),
        ("text_projection", torch.empty(0, 0)),
        ("text_projection", torch.ones(100_000, 1)),
        ("positional_embedding", torch.ones(3)),
        ("range of blocks", torch.ones(1)),
        ("visual.attnpool.positional_embedding", torch.ones(7, 256)),
        ("visual.attnpool.positional_embedding", torch.tensor(1.0)),
        ("visual.attnpool.c_proj.weight", torch.tensor(1.0)),
        ("visual.layer1.0.conv1.weight", torch.ones(100_000, 1)),
    ],
)
def test_weights_of_odd_shapes_build_no_tower(tiny_rn50: Path, name: str, value: torch.Tensor, tmp_path: Path) -> None:
    tensors = read_tensors(tiny_rn50, "w")
    if "range" in name:
        tensors |= {f"transformer.resblocks.{i}.x": value for i in range(100_000)}
    else:
        tensors[name] = value
    torch.save(tensors, tmp_path / "odd.pt")
    with pytest.raises(IpiqaError):
        clip_image_encoder(64, weights=str(tmp_path / "odd.pt"))
        clip_prompt_encoder(weights=str(tmp_path / "odd.pt"))


def test_a_file_that_unpacks_to_far_more_than_it_weighs_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 50_000_000)
    with pytest.raises(DataError, match=r"unpacks to 0.1 GB"):
        read_tensors(tmp_path / "bomb.pt", "w")


def test_a_safetensors_header_that_begins_like_a_web_page_is_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    save_file({"w": torch.ones(1)}, path)
    for length in range(15_000, 16_000):
        save_file({"w": torch.ones(1)}, path, metadata={"x": "y" * length})
        if path.read_bytes()[:2] == b" <":
            break
    assert path.read_bytes().lstrip()[:1] == b"<" and torch.equal(read_tensors(path, "w")["w"], torch.ones(1))


def test_paths_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("a\0b.pt", "x" * 5000, "x/" * 5000, "~nobody-of-this-name/a.pt"):
        with pytest.raises(IpiqaError, match=r"w: '.*(is not a path|does not exist)") as caught:
            read_tensors(path, "w")
        assert str(caught.value).isprintable()
    torch.save({"w": torch.ones(1)}, tmp_path / "a.pt")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_tensors("~/a.pt", "w").keys() == {"w"}


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    whole = weights._read_by_kind
    monkeypatch.setattr(weights, "_read_by_kind", lambda path: reads.append(path) or whole(path))
    path = tmp_path / "a.pt"
    torch.save({"w": torch.ones(2)}, path)
    read_tensors(path, "w").clear()
    assert len(read_tensors(path, "w")) == 1 and len(reads) == 1
    before = path.stat()
    torch.save({"w": torch.zeros(2)}, path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert read_tensors(path, "w")["w"].sum() == 0 and len(reads) == 2


@pytest.fixture(scope="module")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The content of a weights file of each kind."""
    folder = tmp_path_factory.mktemp("small")
    tensors = {"a.weight": torch.ones(2, 3), "a.bias": torch.ones(2)}
    torch.save({"model": tensors, "epoch": 1}, folder / "new.pt")
    torch.save(tensors, folder / "old.pt", _use_new_zipfile_serialization=False)
    save_file(tensors, folder / "x.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(folder / "script.pt"))
    return [path.read_bytes() for path in sorted(folder.iterdir())]


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=100, derandomize=True, deadline=None)
@given(
    kind=st.integers(0, 3), cut=st.integers(0, 10**6), changes=st.lists(st.tuples(st.integers(0, 10**6), st.binary()))
)
def test_damaged_files_are_refused_in_one_line(
    small_files: list[bytes], kind: int, cut: int, changes: list[tuple[int, bytes]]
) -> None:
    content = bytearray(small_files[kind])
    for place, block in changes:
        place %= len(content)
        content[place : place + len(block)] = block
    if cut % 3 == 0:
        content = content[: cut % (len(content) + 1)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pt"
        path.write_bytes(content)
        message = ""
        try:
            read_tensors(path, "w")
        except DataError as error:
            message = str(error)
        assert message.isprintable()


def test_sha256_is_checked_when_given(tiny_rn50: Path) -> None:
    digest = hashlib.sha256(tiny_rn50.read_bytes()).hexdigest()
    assert read_tensors(tiny_rn50, "w", digest)
    with pytest.raises(DataError, match=f"has sha256 {digest}, not 00"):
        read_tensors(tiny_rn50, "w", "00")


def test_weights_of_another_architecture_are_refused(tiny_rn50: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="tensors have another shape, first 'tower.conv1.weight'"):
        clip_image_encoder(64, weights=str(tiny_rn50), architecture="RN50-quickgelu")
    torch.save({"visual.proj": torch.ones(1)}, tmp_path / "vit.pt")
    with pytest.raises(DataError, match="holds no ResNet of CLIP.*A vision transformer must be named"):
        clip_image_encoder(64, weights=str(tmp_path / "vit.pt"))
    with pytest.raises(DataError, match="holds no CLIP text tower"):
        clip_prompt_encoder(weights=str(tmp_path / "vit.pt"))
    tensors = read_tensors(tiny_rn50, "w")
    del tensors["visual.conv1.weight"]
    torch.save(tensors, tmp_path / "partial.pt")
    with pytest.raises(DataError, match="1 tensors are missing, first 'tower.conv1.weight'"):
        clip_image_encoder(64, weights=str(tmp_path / "partial.pt"))
