"""Bad input: nothing is trained, nothing in it is run, and one line says where, what, and what would be right."""

from __future__ import annotations

import ast
import hashlib
import pickle
import shutil
from pathlib import Path

import pytest
import toy as toy_dataset
from bad_calls import unsafe_calls
from bad_files import CHECKPOINTS, FORMS, MARKER, PLACES, RESUMED, WEIGHTS, raw_pickle
from bad_images import CACHED, IMAGES
from bad_inputs import CONFIGS, TABLES, Case, Toy
from conftest import REPOSITORY

from ipiqa.cli import main
from ipiqa.config.loading import load_config
from ipiqa.training.cross_validation import run

TRAINED = ("last.pt", "best.pt", "previous.pt", "scores.json")


def write_toy(folder: Path) -> None:
    """Writes 15 images of 5 prompts."""
    toy_dataset.write_dataset(folder, num_prompts=5, images_per_prompt=3)
    (folder / "toy.yaml").write_text(toy_dataset.CONFIG.format(folder=folder))


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy dataset, and beside it a trained run of one fold and one epoch."""
    folder = tmp_path_factory.mktemp("bad_input") / "pristine"
    write_toy(folder)
    run_dir = folder.parent / "trained"
    run(load_config(folder / "toy.yaml", "run.max_epochs=1", "run.num_folds=1", f"run.output_dir={run_dir}"))
    return folder


@pytest.fixture
def toy(pristine: Path, tmp_path: Path) -> Toy:
    folder = tmp_path / "toy"
    shutil.copytree(pristine, folder)
    (folder / "toy.yaml").write_text(toy_dataset.CONFIG.format(folder=folder))
    return Toy(folder, pristine.parent / "trained")


def contents(folder: Path) -> dict[str, str]:
    """Returns a hash of every input file, and of whatever training would have written."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ({"output", "cache"}.isdisjoint(path.parts) or path.name in TRAINED)
    }


def train(toy: Toy, extra: list[str]) -> int:
    return main(["train", "--cfg-path", str(toy.cfg), "run.max_epochs=1", "run.num_folds=1", *extra])


def refusal(toy: Toy, extra: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Returns the one line that a command is refused with; nothing is trained and no input changed."""
    before = contents(toy.folder)
    status = train(toy, extra)
    error = capsys.readouterr().err
    assert status == 2, error
    assert contents(toy.folder) == before
    lines = [line for line in error.splitlines() if line.startswith("ipiqa: ")]
    assert len(lines) == 1 and error.endswith(f"{lines[0]}\n"), error
    assert "Traceback" not in error
    return lines[0].removeprefix("ipiqa: ")


SECTIONS = {
    "config": CONFIGS,
    "table": TABLES,
    "image": IMAGES,
    "weights": WEIGHTS,
    "checkpoint": CHECKPOINTS,
    "resumed": RESUMED,
}
CASES: dict[str, Case] = {f"{section}-{case.name}": case for section, cases in SECTIONS.items() for case in cases}


@pytest.mark.parametrize("name", CASES)
def test_refused_in_one_line(name: str, toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES[name]
    line = refusal(toy, case.spoil(toy), capsys)
    assert line.startswith(case.where.replace("{folder}", str(toy.folder))) and len(line) < 1000


# ------------------------------------------------------------------------------------ files that try to run something


@pytest.mark.parametrize("form", ["pickle", "system call", "newest pickle", "oldest pickle"])
def test_the_payload_would_run(form: str, toy: Toy) -> None:
    content = FORMS[form][1](toy)
    assert not (toy.folder / MARKER).exists()
    pickle.loads(content)
    assert (toy.folder / MARKER).exists()


@pytest.mark.parametrize("form", FORMS)
def test_nothing_in_a_file_is_run(form: str, toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    name, make = FORMS[form]
    path = toy.folder / name
    path.write_bytes(make(toy))
    for place in PLACES:
        line = refusal(toy, PLACES[place](toy, path), capsys)
        assert ("last.pt" if place == "resumed" else name) in line
        assert not (toy.folder / MARKER).exists()


def test_an_image_cache_is_never_interpreted(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    options = [word.replace("{folder}", str(toy.folder)) for word in CACHED]
    assert train(toy, [*options, f"run.output_dir={toy.folder}/output/first"]) == 0
    (cache,) = (toy.folder / "output" / "cache").glob("*.images")
    content = cache.read_bytes()
    cache.write_bytes(raw_pickle(toy).ljust(len(content), b"\0"))
    capsys.readouterr()
    assert train(toy, [*options, f"run.output_dir={toy.folder}/output/second"]) == 0
    assert f"image cache: '{cache}' is damaged; building it again" in capsys.readouterr().err
    assert cache.read_bytes() == content and not (toy.folder / MARKER).exists()


def test_no_module_runs_what_stands_in_a_file() -> None:
    own = REPOSITORY / "ipiqa" / "scoring" / "ray_engine.py"  # reads what the job itself has sent, and no file
    paths = [*REPOSITORY.glob("*.py"), *sorted({*(REPOSITORY / "ipiqa").rglob("*.py")} - {own})]
    found = {str(path): unsafe_calls(ast.parse(path.read_text(encoding="utf-8"))) for path in paths}
    assert len(found) > 50 and not {path: calls for path, calls in found.items() if calls}


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "import yaml\nclass L(yaml.Loader): ...\nyaml.load(text, Loader=L)",
        "from torch import load as read\nread(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch as t\nt.jit.load(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import pickle\nclass U(pickle.Unpickler): ...",
        "from pickle import loads\nloads(content)",
        "import tarfile\ntarfile.open(path).extractall()",
        "import subprocess\nsubprocess.run(command, shell=True)",
    ],
)
def test_unsafe_calls_are_found(source: str) -> None:
    assert len(unsafe_calls(ast.parse(source))) == 1


def test_links_of_the_image_folder_are_followed(toy: Toy) -> None:
    """The table cannot leave the folder; whoever made the folder can, as with images on another disk."""
    elsewhere = toy.folder / "elsewhere.png"
    toy.image.rename(elsewhere)
    toy.image.symlink_to(elsewhere)
    assert train(toy, []) == 0
