"""What a run reads is recorded when its folder is claimed: every later job and every resume must read the same."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import error_of, refused
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import write_config

from ipiqa import build
from ipiqa.config.loading import load_config
from ipiqa.errors import DataError, IpiqaError
from ipiqa.training import run_folder
from ipiqa.training.cross_validation import run
from ipiqa.training.pretraining import pretrain
from ipiqa.training.run_folder import check_same_run

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture
def cfg(tmp_path: Path) -> Path:
    path = write_config(tmp_path)
    image_tower = build.make_model(load_config(path), 2).image_encoder  # type: ignore[attr-defined]
    torch.save(image_tower.clip_tensors(), tmp_path / "tower.pt")
    return path


def with_weights(cfg: Path, *changes: str) -> list[str]:
    folder = cfg.parent
    checkpoint = f"run.checkpoint={folder}/start.pt"
    return [f"model.image_encoder.weights={folder}/tower.pt", checkpoint, "run.max_epochs=1", *changes]


def exchange_table(folder: Path) -> None:
    table = folder / "data.csv"
    table.write_text(table.read_text().replace("a red blue", "a red bluish"))


def exchange_image(folder: Path) -> None:
    image = max((folder / "images").iterdir())
    image.write_bytes(image.read_bytes() + b"\0")


def exchange_tensors(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    torch.save({name: value + 1e-3 for name, value in content.items()}, path)


EXCHANGES = {
    "the annotation table (sha256) was": exchange_table,
    "the image files (sha256) was": exchange_image,
    "model.image_encoder.weights was": lambda folder: exchange_tensors(folder / "tower.pt"),
    "run.checkpoint was": lambda folder: exchange_tensors(folder / "start.pt"),
}


@pytest.mark.parametrize("resume", [True, False])
def test_a_later_job_that_reads_other_material_is_refused_though_its_fold_has_not_begun(
    cfg: Path, resume: bool, tmp_path: Path
) -> None:
    torch.save(build.make_model(load_config(cfg), 2).state_dict(), tmp_path / "start.pt")
    config = load_config(cfg, *with_weights(cfg))
    kept = shutil.copytree(cfg.parent, tmp_path.parent / f"{tmp_path.name}_kept")
    run(config, folds=[0, 1] if not resume else [0])
    shutil.rmtree(tmp_path / "output/toy/fold_01", ignore_errors=True)
    for message, exchange in EXCHANGES.items():
        exchange(tmp_path)
        assert message in refused(lambda: run(config, folds=[1], resume=resume))
        assert not (tmp_path / "output/toy/fold_01").exists()
        shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    # Content counts, paths do not.
    (tmp_path / "tower.pt").rename(tmp_path / "moved.pt")
    run(load_config(cfg, *with_weights(cfg, f"model.image_encoder.weights={tmp_path}/moved.pt")), folds=[1])
    assert (tmp_path / "output/toy/fold_01/scores.json").is_file()


def test_weights_exchanged_while_the_folds_train_end_the_job(
    cfg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(build.make_model(load_config(cfg), 2).state_dict(), tmp_path / "start.pt")
    made = build.make_trainer

    def make_and_exchange(*parts: object, **named: object) -> object:
        exchange_tensors(tmp_path / "tower.pt")
        return made(*parts, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(build, "make_trainer", make_and_exchange)
    assert "model.image_encoder.weights was" in refused(lambda: run(load_config(cfg, *with_weights(cfg))))
    assert (tmp_path / "output/toy/fold_00/scores.json").is_file()
    assert not (tmp_path / "output/toy/fold_01/scores.json").exists()


def test_other_numbers_of_processes_and_threads_are_named_together(cfg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(load_config(cfg), folds=[0])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(run_folder.dist, "world_size", lambda: 3)
    message = refused(lambda: check_same_run(load_config(cfg), run_folder.content_of(torch.device("cpu"), None, [])))
    assert "the number of processes was 1, is 3" in message
    assert "the number of CPU threads (OMP_NUM_THREADS) was 1, is 7" in message


def test_a_folder_without_its_identity_is_not_continued(cfg: Path) -> None:
    run_dir = run(load_config(cfg), folds=[0])
    (run_dir / "identity.json").unlink()
    assert "identity.json: not the identity of a run." in error_of(lambda: run(load_config(cfg), resume=True))


def test_pretraining_is_compared_as_well(tmp_path: Path) -> None:
    from test_training_pretraining import CONFIG
    from toy import write_dataset

    write_dataset(tmp_path)
    (tmp_path / "pretrain.yaml").write_text(CONFIG.format(folder=tmp_path))
    config = load_config(tmp_path / "pretrain.yaml", "run.max_epochs=1")
    pretrain(config)
    (tmp_path / "output/summary.json").unlink()
    (tmp_path / "output/.last.pt.77.tmp").write_bytes(b"half")  # of a job that was killed while it wrote
    exchange_image(tmp_path)
    assert "the image files (sha256) was" in refused(lambda: pretrain(config, resume=True))
    image = max((tmp_path / "images").iterdir())
    image.write_bytes(image.read_bytes()[:-1])
    pretrain(config, resume=True)
    assert not list((tmp_path / "output").glob(".*"))


def test_every_job_is_recorded_and_more_folds_may_be_asked_for(cfg: Path) -> None:
    run_dir = run(load_config(cfg, "run.num_folds=1", "run.max_epochs=1"))
    first = (run_dir / "environment.json").read_text(), (run_dir / "command.txt").read_text()
    written = (run_dir / "config.yaml").stat().st_ino
    run(load_config(cfg, "run.num_folds=1", "run.max_epochs=1", "run.log_every=7"), resume=True)
    assert (run_dir / "config.yaml").stat().st_ino == written  # nothing to record, nothing written
    run(load_config(cfg, "run.num_folds=3", "run.max_epochs=1"), resume=True)
    assert load_config(run_dir / "config.yaml").run.num_folds == 3
    run(load_config(cfg, "run.num_folds=2", "run.max_epochs=1"), resume=True)
    assert load_config(run_dir / "config.yaml").run.num_folds == 3
    assert first == ((run_dir / "environment.json").read_text(), (run_dir / "command.txt").read_text())
    jobs = [json.loads(line) for line in (run_dir / "jobs.jsonl").read_text().splitlines()]
    assert [(job["folds"], job["resume"]) for job in jobs] == [
        ([0], False), ([0], True), ([0, 1, 2], True), ([0, 1], True)
    ]  # fmt: skip


def test_folds_that_start_from_a_run_do_not_join_folds_that_start_afresh(cfg: Path, tmp_path: Path) -> None:
    run(load_config(cfg, "run.max_epochs=1"), folds=[0])
    start = run(load_config(cfg, "run.max_epochs=1", f"run.output_dir={tmp_path}/start"))
    config = load_config(cfg, "run.max_epochs=1", f"run.checkpoint={start}")
    assert "run.checkpoint was None, is 'a folder'" in refused(lambda: run(config, folds=[1]))


@settings(max_examples=60, derandomize=True, deadline=None)
@given(content=JSON, text=st.one_of(st.none(), st.binary(max_size=20)))
def test_any_identity_file_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: object, text: bytes | None
) -> None:
    folder = tmp_path_factory.getbasetemp() / "identity"
    if not folder.is_dir():
        write_config(folder)
        (folder / "config.yaml").write_text((folder / "toy.yaml").read_text())
    config = load_config(folder / "toy.yaml", f"run.output_dir={folder}")
    (folder / "identity.json").write_bytes(text or json.dumps({"content": content}).encode())
    with contextlib.suppress(IpiqaError):
        check_same_run(config, {"the number of processes": 1})
    (folder / "identity.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="not the identity of a run"):
        check_same_run(config, {})
