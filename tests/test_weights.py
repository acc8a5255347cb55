"""Weights files of every kind, and files that only look like them."""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from reference import standin

from ipiqa.errors import DataError
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
    with pytest.raises(DataError, match="cut off"):
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


def test_sha256_is_checked_when_given(tiny_rn50: Path) -> None:
    digest = hashlib.sha256(tiny_rn50.read_bytes()).hexdigest()
    assert read_tensors(tiny_rn50, "w", digest)
    with pytest.raises(DataError, match=f"has sha256 {digest}, not 00"):
        read_tensors(tiny_rn50, "w", "00")


def test_weights_of_another_architecture_are_refused(tiny_rn50: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="but RN50-quickgelu is ResNetSizes"):
        clip_image_encoder(64, weights=str(tiny_rn50), architecture="RN50-quickgelu")
    torch.save({"visual.proj": torch.ones(1)}, tmp_path / "vit.pt")
    with pytest.raises(DataError, match="holds a vision transformer"):
        clip_image_encoder(64, weights=str(tmp_path / "vit.pt"))
    with pytest.raises(DataError, match="holds no CLIP text tower"):
        clip_prompt_encoder(weights=str(tmp_path / "vit.pt"))
    tensors = read_tensors(tiny_rn50, "w")
    del tensors["visual.conv1.weight"]
    torch.save(tensors, tmp_path / "partial.pt")
    with pytest.raises(DataError, match="1 tensors are missing, first 'tower.conv1.weight'"):
        clip_image_encoder(64, weights=str(tmp_path / "partial.pt"))
