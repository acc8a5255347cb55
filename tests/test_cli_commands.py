"""The command line: what is printed, and the exit status."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from fake_runs import write_run
from reference.tables import names_sha256, reference_splits, write_table
from toy import write_config

import ipiqa
from ipiqa.cli import main
from ipiqa.cli.arguments import parse_folds
from ipiqa.cli.train import script
from ipiqa.config.loading import Config, load_config
from ipiqa.errors import ConfigError

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"} | {"PYTHONUNBUFFERED": "", "PYTHONPATH": str(REPOSITORY)}
FILES = ("scores.json", "predictions.csv", "metrics.jsonl", "split.json")
SHIPPED = sorted(p for p in (REPOSITORY / "ipiqa/projects").glob("*/*.yaml") if p.name != "ablation.yaml")


@pytest.fixture
def cfg(tmp_path: Path) -> Path:
    return write_config(tmp_path)


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Returns the one line on standard error."""
    err = capsys.readouterr().err
    assert err.startswith("ipiqa: ") and err.count("\n") == 1, err
    return err.removeprefix("ipiqa: ").rstrip("\n")


def python(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs the interpreter in the repository root."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=120, **options
    )


# -------------------------------------------------------------------------------------------- arguments, exit statuses


def test_the_module_is_the_command() -> None:
    done = python("-m", "ipiqa", "config", "show", "--cfg-path", "no.yaml")
    assert done.returncode == 2 and done.stderr.startswith("ipiqa: --cfg-path: 'no.yaml' does not exist.")


def test_help_and_version_come_without_torch() -> None:
    code = "import sys; from ipiqa.cli import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    done = python("-c", code, "--help")
    assert done.returncode == 0 and done.stdout.endswith("\nFalse\n")
    for word in ("train", "data", "config", "report", "env", "convert-clip", "demo-data", "exit status:", "143"):
        assert word in done.stdout
    assert python("-c", code, "--version").stdout == f"ipiqa {ipiqa.__version__}\nFalse\n"


@pytest.mark.parametrize("name", ["train_agiqa1k.py", "train_agiqa3k.py"])
def test_help_of_the_scripts_names_every_flag(name: str) -> None:
    done = python(name, "--help")
    assert done.returncode == 0
    for flag in ("--cfg-path", "--num_cv", "--folds", "--seed", "--resume", "--options", "KEY=VALUE"):
        assert flag in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "invalid choice: 'trian' (choose from"),
        ([], "the following arguments are required: <command>"),
        (["config"], "the following arguments are required: <action>"),
        (["train"], "the following arguments are required: --cfg-path"),
        (["train", "--cfg-path", "x.yaml", "--epochs", "3"], "unrecognized arguments: --epochs\n"),
        (["data", "split", "--cfg-path", "x.yaml"], "the following arguments are required: --fold"),
        (["env", "more"], "unrecognized arguments: more"),
    ],
)
def test_arguments_that_are_not_understood(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    err = capsys.readouterr().err
    assert caught.value.code == 2 and message in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("command", "flag", "wrong"),
    [
        ("train --cfg-path x.yaml", "--num_cv", ["ten", "0", "20000", "1000000000", "9" * 5000]),
        ("pretrain --cfg-path x.yaml", "--seed", ["-1", "4294967296", "1.5"]),
        ("data split --cfg-path x.yaml", "--fold", ["-1", "1000000000"]),
        ("demo-data", "--num-prompts", ["0", "-1", "1000000000"]),
        ("demo-data", "--image-size", ["0", "1", "1000000000"]),
        ("demo-data", "--seed", ["-1"]),
        ("demo-pairs", "--num", ["0", "-5", "1000000000"]),
        ("demo-encoders --cfg-path x.yaml", "--num-pairs", ["0", "255"]),
        ("demo-encoders --cfg-path x.yaml", "--epochs", ["0", "-1"]),
    ],
)
def test_numbers_out_of_range_are_one_line(
    command: str, flag: str, wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for number in wrong:
        assert main([*command.split(), flag, number]) == 2
        line = error_line(capsys)
        assert line.startswith(f"{flag}: '{number[:90]}") and " is out of range. Give a whole number from " in line


@pytest.mark.parametrize("name", ["a\0b", "a\udcff", "é" * 200])
def test_names_that_no_file_can_have(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(REPOSITORY / "ipiqa/projects/demo/ipiqa.yaml")
    for flag, command in (
        ("--cfg-path", ["config", "show", "--cfg-path", name]),
        ("--grid", ["ablate", "--grid", name]),
        ("runs", ["report", name]),
        ("--out", ["demo-data", "--out", name]),
        ("--out", ["data", "split", "--cfg-path", config, "--fold", "0", "--out", name]),
        ("source", ["convert-clip", name, "x"]),
        ("run.output_dir", ["train", "--cfg-path", config, f"run.output_dir={name}"]),
    ):
        assert main(command) == 2
        line = error_line(capsys)
        assert line.startswith(f"{flag}: ") and (" is not a path: " in line or " is not UTF-8." in line)


# -------------------------------------------------------------------------------------------------- settings and flags


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, list[int] | None, bool]]:
    """Collects what would have been trained."""
    calls: list[tuple[Config, list[int] | None, bool]] = []

    def run(config: Config, *, folds: list[int] | None, resume: bool) -> Path:
        calls.append((config, folds, resume))
        raise ConfigError("not trained here")

    monkeypatch.setattr("ipiqa.training.cross_validation.run", run)
    return calls


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", {}),
        ("--num_cv 5", {"num_folds": 5}),
        ("--num-cv 5 --seed 7", {"num_folds": 5, "seed": 7}),
        ("--seed 0 run.num_folds=4", {"num_folds": 4, "seed": 0}),
        ("run.seed=3 --num_cv 5 run.beta2=0.9", {"num_folds": 5, "seed": 3, "beta2": 0.9}),
        ("run.seed=3 --resume run.seed=4 --folds 0 run.amp=bf16", {"seed": 4, "amp": "bf16"}),
        ("--options run.seed=3 run.amp=bf16 --resume run.beta2=0.9", {"seed": 3, "amp": "bf16", "beta2": 0.9}),
        ("--options run.seed=3 --options run.amp=bf16", {"seed": 3, "amp": "bf16"}),
        ("run.max_epochs=9 --options run.seed=3 run.max_epochs=8", {"max_epochs": 9, "seed": 3}),
        ("--seed 5 run.seed=3", {"seed": 5}),
    ],
)
def test_settings_may_stand_anywhere(
    arguments: str, expected: dict[str, Any], cfg: Path, started: list[tuple[Config, list[int] | None, bool]]
) -> None:
    words = arguments.split()
    for argv in (["--cfg-path", str(cfg), *words], [*words, "--cfg-path", str(cfg)]):
        assert script("agiqa_3k", argv) == 2 == main(["train", *argv])
    plain = load_config(cfg)
    assert len(started) == 4
    for config, folds, resume in started:
        run = {name: value for name, value in vars(config.run).items() if value != getattr(plain.run, name)}
        assert run == expected and config.split == plain.split
        assert resume == ("--resume" in words) and folds == ([0] if "--folds" in words else None)


@pytest.mark.parametrize(("text", "folds"), [("0", [0]), ("0,3", [0, 3]), ("2, 1", [2, 1])])
def test_folds(text: str, folds: list[int]) -> None:
    assert parse_folds(text) == folds


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--folds", "0-3"], "--folds: '0-3' is no list of folds. Write numbers from 0 with commas, such as 0,3."),
        (["--folds", ""], "--folds: '' is no list of folds."),
        (["--folds", "2"], "--folds: 2 is not a choice from 0 to 1. Folds are counted from 0."),
        (["--options", "run.epochs=3"], "run.epochs: no such setting."),
        (["--resume"], "{folder}/output/toy: there is no run to continue. Leave out --resume to start one."),
        (["run.output_dir={folder}/toy.yaml/x"], "'{folder}/toy.yaml/x': Not a directory. Check the path, its perm"),
        (["run.output_dir={folder}/toy.yaml"], "run.output_dir: '{folder}/toy.yaml' is a file. Choose a folder."),
        (["dataset.annotations=no.csv"], "dataset.annotations: 'no.csv' does not exist. Get AGIQA-3k from https://"),
        (["dataset.images=nowhere"], "dataset.images: the folder 'nowhere' does not exist."),
        (["model.image_encoder.weights=RN50.pt"], "model.image_encoder.weights: 'RN50.pt' does not exist."),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_made(
    arguments: list[str], message: str, cfg: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(cfg.parent.rglob("*"))
    assert script("agiqa_3k", ["--cfg-path", str(cfg), *(a.format(folder=cfg.parent) for a in arguments)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("ipiqa: " + message.format(folder=cfg.parent))
    assert not any(line.startswith(("ipiqa:", "Traceback", " ")) for line in lines[:-1])
    assert sorted(cfg.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("dataset", "project", "other"),
    [("agiqa_1k", "agiqa3k", "train_agiqa3k.py"), ("agiqa_3k", "agiqa1k", "train_agiqa1k.py")],
)
def test_the_script_of_the_other_dataset(
    dataset: str, project: str, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = REPOSITORY / f"ipiqa/projects/{project}/ipiqa.yaml"
    assert script(dataset, ["--cfg-path", str(path)]) == 2
    assert error_line(capsys) == f"{path}: dataset.name is 'agiqa_{project[5:]}'. Start it with {other}."
    assert script(dataset, ["--cfg-path", str(path), "dataset.name=table", "dataset.targets=[q]"]) == 2
    assert error_line(capsys).endswith("dataset.name is 'table'. Start it with ipiqa train.")


# ----------------------------------------------------------------------------------------- commands that train nothing


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_config_show_prints_what_loads_to_the_same_config(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "show", "--cfg-path", str(path), "run.max_epochs=77"]) == 0
    (tmp_path / "shown.yaml").write_text(capsys.readouterr().out)
    assert load_config(tmp_path / "shown.yaml") == load_config(path, "run.max_epochs=77")
    assert load_config(tmp_path / "shown.yaml").run.max_epochs == 77


def test_data_check(cfg: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "check", "--cfg-path", str(cfg)]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert out.startswith("40 rows, 40 images, 10 prompts, 10 groups: all usable\n")
    assert re.findall(r"MOS (\w+): \d\.\d{3} to \d\.\d{3}, mean \d\.\d{3}", out) == ["quality", "alignment"]

    first, second, third = sorted((cfg.parent / "images").iterdir())[:3]
    content = first.read_bytes()
    first.write_bytes(content[:-40])  # the header is whole: only decoding finds it
    second.write_text("no image")
    assert main(command) == 2
    printed = capsys.readouterr()
    assert "2 of 40 images cannot be" in printed.err and "Traceback" not in printed.err
    assert first.name in printed.out and second.name in printed.out and third.name not in printed.out

    second.unlink()
    third.unlink()
    assert main(command) == 2
    printed = capsys.readouterr()
    assert printed.out.startswith(f"missing: {second.name}\nmissing: {third.name}\n'{first}")
    assert "dataset.images: 2 of 40 images are missing under" in printed.err
    assert main([*command, "dataset.images=nowhere"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "the folder 'nowhere' does not exist. Get AGIQA-3k" in printed.err


def test_data_split_needs_no_images(cfg: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "split", "--cfg-path", str(cfg), "dataset.images=nowhere", "--fold", "1"]
    out = tmp_path / "new" / "split.json"
    assert main([*command, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    split = json.loads(out.read_text())
    assert set(split) == {"train", "val", "kind", "seed", "fold", "sha256"}
    assert (split["kind"], split["seed"], split["fold"], len(split["train"]), len(split["val"])) == (
        "holdout", 1, 1, 32, 8,
    )  # fmt: skip
    assert main(command) == 0
    assert capsys.readouterr().out == out.read_text()
    assert main([*command, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"ipiqa: '{tmp_path}': Is a directory.")
    assert list(tmp_path.glob(".*.tmp")) == []


@pytest.mark.parametrize("project", ["agiqa1k", "agiqa3k"])
def test_data_split_is_the_references(project: str, tmp_path: Path) -> None:
    annotations = f"dataset.annotations={write_table(tmp_path, project)}"
    cfg = ["--cfg-path", str(REPOSITORY / f"ipiqa/projects/{project}/ipiqa.yaml")]
    for fold, expected in enumerate(reference_splits(project)):
        out = tmp_path / f"{fold}.json"
        assert main(["data", "split", *cfg, annotations, "--fold", str(fold), "--out", str(out)]) == 0
        found = json.loads(out.read_text())
        assert names_sha256(found["val"]) == expected and found["kind"] == "reference"
        assert not set(found["val"]) & set(found["train"])


def test_train_one_fold_then_the_other_then_report(cfg: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--cfg-path", str(cfg), "run.max_epochs=1"]
    run_dir = cfg.parent / "output/toy"
    assert script("agiqa_3k", [*command, "--folds", "1"]) == 0
    printed = capsys.readouterr().out
    assert "alignment" in printed and printed.endswith(f"\n\nReport: {run_dir}/report.html\n")
    assert [p.name for p in run_dir.glob("fold_*")] == ["fold_01"]
    assert "1 of 2" in (run_dir / "summary.md").read_text()
    assert main(["train", *command, "--folds", "0", "--num_cv", "2"]) == 0
    assert "± std" in capsys.readouterr().out and "1 of 2" not in (run_dir / "summary.md").read_text()
    assert script("agiqa_3k", command) == 2
    assert "already holds a run. Continue it with --resume" in capsys.readouterr().err.splitlines()[-1]
    assert script("agiqa_3k", [*command, "--resume"]) == 0


def test_report_of_one_run_and_of_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (str(write_run(tmp_path / name, noise=noise)) for name, noise in (("one", 0.3), ("two", 0.6)))
    assert main(["report", one]) == 0
    alone = capsys.readouterr().out
    assert "SRCC" in alone and f"Report: {one}/report.html" in alone and (tmp_path / "one" / "summary.csv").is_file()
    assert main(["report", one, two]) == 0
    both = capsys.readouterr().out
    assert both.startswith(alone) and f"Report: {two}/report.html" in both
    compared = both.partition(f"{two}/report.html")[2]
    assert "alignment" in compared and "95 %" in compared
    assert main(["report", one, two, one]) == 2
    assert error_line(capsys) == "report: 3 runs. Give one to sum up or two to compare."
    assert main(["report", str(tmp_path / "three")]) == 2
    assert "three': is not a folder. Give the output folder of a run" in error_line(capsys)


def test_env(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    facts = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert facts["ipiqa"] == ipiqa.__version__ and {"python", "torch", "open_clip_torch", "gpus"} <= set(facts)


def test_convert_clip(tiny_rn50: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new" / "RN50.safetensors"
    assert main(["convert-clip", str(tiny_rn50), str(target)]) == 0
    assert re.fullmatch(rf"\d+ tensors -> {target}\n", capsys.readouterr().out) and target.is_file()


def test_convert_clip_of_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert-clip", "no.pt", str(tmp_path / "x.safetensors")]) == 2
    assert "'no.pt' does not exist. OpenAI's RN50.pt is at https://" in error_line(capsys)
    assert not list(tmp_path.iterdir())
