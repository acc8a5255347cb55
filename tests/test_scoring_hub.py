"""ipiqa.load("hf-hub:..."): from a stand-in for the Hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from hub import hub

from ipiqa import registry
from ipiqa.datasets.table import Target
from ipiqa.models.bundle import ModelSpec, write_bundle

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPT = """
import json, sys
import torch
import huggingface_hub.constants
import ipiqa

images, out = torch.linspace(0, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32), []
for name in json.loads(sys.argv[1]):
    huggingface_hub.constants.HF_HUB_OFFLINE = name.startswith("offline ")
    try:
        scorer = ipiqa.load(name.removeprefix("offline "), "cpu")
        out.append((scorer.score("x.png") if name.startswith("table") else scorer.score_folds(images)).tolist())
    except ipiqa.errors.IpiqaError as error:
        out.append(str(error))
print(json.dumps(out))
"""


def image_only(folder: Path, bias: float) -> None:
    encoder = {"name": "clip_resnet", "layers": [1, 1, 1, 1], "width": 4, "embed_dim": 8}
    section = registry.resolve("model", {"name": "image_only", "image_encoder": encoder, "head": "linear"}, "model")
    processor = registry.resolve("processor", "squash", "processor")
    spec = ModelSpec(model=section, image_size=32, processor=processor, targets=(Target("quality"),))
    model = spec.build()
    model.head.out_proj.weight.data.zero_()  # type: ignore[union-attr]
    model.head.out_proj.bias.data.fill_(bias)  # type: ignore[union-attr]
    write_bundle(folder, model, spec)


def test_what_is_shared_on_a_hub_is_loaded_by_its_name(tmp_path: Path) -> None:
    for folder, bias in (("one", 1), ("old", 2), ("run/fold_00", 3), ("run/fold_01", 4)):
        image_only(tmp_path / folder, bias)
    (tmp_path / "one" / "README.md").write_text("# one")
    (tmp_path / "one" / "scores.csv").write_text("image,iqa\nx.png,3\n")
    (tmp_path / "one" / "train.py").write_text("raise SystemExit('must not run')")
    (tmp_path / "one" / "pytorch_model.bin").write_bytes(b"not wanted")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"architectures": ["BertModel"]}')
    repositories = {
        ("owner/one", "main"): tmp_path / "one", ("owner/one", "v0"): tmp_path / "old",
        ("owner/run", "main"): tmp_path / "run", ("owner/other", "main"): tmp_path / "other",
    }  # fmt: skip
    names = [
        "hf-hub:owner/one", "hf-hub:owner/one@v0", "hf-hub:owner/run", "hf-hub:owner/one@v9", "hf-hub:owner/none",
        "hf-hub:owner/private", "hf-hub:owner/other", "hf-hub:../x",
        "table scores=hf-hub:owner/one/scores.csv", "table scores=hf-hub:owner/one/none.csv",
        "offline hf-hub:owner/one", "offline hf-hub:a/b",
    ]  # fmt: skip
    with hub(repositories) as (address, requests):
        settings = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-c", SCRIPT, json.dumps(names)]
        out = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=os.environ | settings
        )
    assert out.returncode == 0, out.stderr
    one, old, run, *refused, of_file, no_file, kept, offline = json.loads(out.stdout)
    assert one == kept == [[[1], [1]]] and old == [[[2], [2]]] and run == [[[3], [3]], [[4], [4]]]
    assert of_file == [[3]] and "it has no file 'none.csv'" in no_file and "\n" not in no_file
    expected = [
        "'hf-hub:owner/one@v9': it has no revision 'v9'. Leave out @v9",
        "'hf-hub:owner/none': no such repository, or none you have access to. For access: hf auth login.",
        "'hf-hub:owner/private': no such repository, or none you have access to.",
        "spec.architectures: no such setting",
        "'hf-hub:../x': no name of a repository. Write hf-hub:OWNER/NAME",
    ]
    for message, words in zip([*refused, offline], [*expected, "not reached, nor downloaded before"], strict=True):
        assert words in message and "\n" not in message
    fetched = {request.split("/", 5)[-1] for request in requests if "/resolve/" in request}
    assert fetched == {
        "README.md",
        "scores.csv",
        "none.csv",
        *(f"{p}{n}" for p in ("", "fold_00/", "fold_01/") for n in ("config.json", "model.safetensors")),
    }
