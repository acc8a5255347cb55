"""Scoring in parts: the numbers, what fails, what is written, and what stops and goes on."""

from __future__ import annotations

import csv
import errno
import pickle
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import error_of
from PIL import Image
from toy import WORDS, write_folds

import ipiqa
from ipiqa.datasets.table import Target
from ipiqa.engine.stop import Interrupted
from ipiqa.errors import ConfigError, DataError
from ipiqa.models.bundle import Training
from ipiqa.scoring import job
from ipiqa.scoring.images import OneImage
from ipiqa.scoring.job import PartsFolder, ScoredPart, Settings, Summary, auto_batch_size, score_columns, score_parts
from ipiqa.scoring.loading import model_sha256
from ipiqa.scoring.rows import Completion, Part, Row, Rows, legible
from ipiqa.scoring.scorer import Scorer
from ipiqa.scoring.writers import Columns

COUNT = 150  # rows: two parts of 64 and one of 22
LONG = "tree " * 90
ANY, PROMPTED = Completion(needs_prompt=False), Completion(needs_prompt=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folds(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def scorer(model: Path) -> Scorer:
    return ipiqa.load(model, "cpu")


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    rows = []
    for i in range(COUNT):
        pixels = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        path = folder / f"{i:03d}.png"
        Image.fromarray(pixels).resize((48, 40)).save(path)
        source = path if i % 3 else path.read_bytes()
        rows.append(Row(f"{i:03d}.png", source, f"a {WORDS[i % 10]} {WORDS[i // 10 % 10]}", (str(i),)))
    return rows


def rows_of(listed: Sequence[Row], complete: Completion = PROMPTED) -> Rows:
    return Rows(("note",), len(listed), lambda: iter(listed), complete)


def settings_of(scorer: Scorer, batch_size: int = 16, num_workers: int = 2) -> Settings:
    return Settings(score_columns(scorer), batch_size, num_workers)


def score_part(scorer: Scorer, part: Part, settings: Settings) -> ScoredPart:
    return next(score_parts(scorer, [part], settings))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "ROWS_PER_PART", 1)  # so that a part is four batches


class Fake(Scorer):
    """Scores each image by the value of its first byte; what it is asked is kept."""

    targets = (Target("value"),)
    needs_prompt = False
    image_size = 8
    trained_on = Training()

    def __init__(self, memory: int = 10**9, before_outputs: Callable[[], object] = lambda: None) -> None:
        self.memory, self.before_outputs = memory, before_outputs
        self.asked: list[Any] = []  # values of each batch, "forget" between them
        self.prepared: list[int] = []

    def forget_prompts(self) -> None:
        self.asked.append("forget")

    def prepare(self, image: OneImage) -> Any:
        value = image[0] if isinstance(image, bytes) else 0
        self.prepared.append(value)
        if value == 255:
            raise DataError("a byte of 255 is no image.")
        return value

    def outputs(self, prepared: Sequence[Any], prompts: Sequence[str]) -> np.ndarray:
        self.before_outputs()
        self.asked.append([*prepared])
        if len(prepared) > self.memory:
            raise torch.OutOfMemoryError("too many")
        if 254 in prepared:
            raise DataError("254 cannot be scored.")
        scores = np.array(prepared, np.float32)[None, :, None]
        return np.where(scores == 253, np.float32("nan"), scores)


def bytes_rows(*values: int) -> list[Row]:
    return [Row(str(i), bytes([value]), None) for i, value in enumerate(values)]


def test_scores_are_those_of_the_scorer_whoever_scores_a_part_and_after_what(scorer: Scorer, listed: list[Row]) -> None:
    settings = settings_of(scorer)
    assert settings.part_size == 64
    parts = [*rows_of(listed).parts(64)]
    scored = [*score_parts(scorer, parts, settings)]
    assert [len(part.rows) for part in scored] == [64, 64, 22] and [part.number for part in scored] == [0, 1, 2]
    scorer(listed[0].source, "something else that is kept")
    for part, expected in zip(reversed(parts), reversed(scored), strict=True):
        again = pickle.loads(pickle.dumps(part))
        assert score_part(scorer, again, Settings(settings.columns, 16, 1)) == expected
    frame = scorer.frame([row.source for row in listed], [row.prompt or "" for row in listed])
    rows = [row for part in scored for row in part.rows]
    assert [row[:3] for row in rows] == [[row.image, row.prompt, *row.carried] for row in listed]
    names = ("quality", "quality_percentile", "quality_std", "alignment", "alignment_percentile", "alignment_std")
    assert settings.columns == names and {row[-1] for row in rows} == {None}
    np.testing.assert_allclose([row[3:-1] for row in rows], frame[[*names]], rtol=1e-3, atol=1e-3)
    assert np.ptp(frame["quality"]) > 0.01


def test_rows_that_fail_change_others_by_rounding_alone(scorer: Scorer, listed: list[Row], tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("this is no picture")
    bad = {
        3: Row("text.png", tmp_path / "text.png", "a"),
        4: Row("none.png", tmp_path / "none.png", "a"),
        20: Row("empty", listed[20].source, " \n"),
        21: Row("known.png", listed[21].source, "a", problem="line 7 names no image"),
        **{i: Row("bytes", b"GIF87", "a") for i in range(32, 48)},  # a whole batch
        148: Row("odd\udcff.png", Path("odd\udcff.png"), "a"),
        149: Row("odd.png", Path("odd\udcff/odd.png"), "a"),
    }
    rows = [bad.get(i, row) for i, row in enumerate(listed)]
    settings = settings_of(scorer)
    good, mixed = (
        [row for part in score_parts(scorer, rows_of(those).parts(64), settings) for row in part.rows]
        for those in (listed, rows)
    )
    for i, (before, after) in enumerate(zip(good, mixed, strict=True)):
        if i in bad:
            assert after[-7:-1] == [None] * 6 and after[0] == legible(bad[i].image)
        else:
            assert after[:3] == before[:3] and after[-1] is None
            np.testing.assert_allclose(after[3:-1], before[3:-1], rtol=1e-3, atol=1e-3)
    errors = {i: str(mixed[i][-1]) for i in bad}
    assert "is not an image: it starts with b'this is no" in errors[3] and "No such file" in errors[4]
    assert errors[20] == "no prompt" and errors[21] == "line 7 names no image"
    assert "'image in memory'" in errors[40] and "'odd\\udcff/odd.png'" in errors[149]
    assert errors[148] == "the name is not UTF-8 text"
    assert not any("\n" in error for error in errors.values())


def test_what_a_model_cannot_score_fails_alone() -> None:
    scorer = Fake()
    part = Part(0, tuple(bytes_rows(1, 254, 3, 253, 255, 6, 7, 8)), ANY)
    scored = score_part(scorer, part, Settings(("value",), 8, 1))
    assert [row[2] for row in scored.rows] == [1, None, 3, None, None, 6, 7, 8]
    errors = [str(row[3]) for row in scored.rows if row[3]]
    assert errors == ["254 cannot be scored.", "the model gives no finite score", "a byte of 255 is no image."]


def test_a_batch_that_does_not_fit_is_halved() -> None:
    scorer = Fake(memory=3)
    part = Part(0, tuple(bytes_rows(*range(10))), ANY)
    assert [row[2] for row in score_part(scorer, part, Settings(("value",), 10, 1)).rows] == [*range(10)]
    assert [len(batch) for batch in scorer.asked[1:]] == [10, 5, 2, 3, 2, 3]  # more than 3 are not tried again
    assert (auto_batch_size("cpu"), auto_batch_size("cuda")) == (32, 128)
    scorer.memory = 0
    with pytest.raises(torch.OutOfMemoryError):
        score_part(scorer, part, Settings(("value",), 10, 1))


def test_images_of_the_next_part_are_prepared_while_the_model_computes_and_only_so_many() -> None:
    settings, deadline = Settings(("value",), 4, 2), time.monotonic() + 10  # parts of 16

    def before_outputs() -> None:
        if len(scorer.asked) == 4:  # before the last batch of the first part
            while len(scorer.prepared) < 20:
                assert time.monotonic() < deadline, "the next part is not read"

    scorer = Fake(before_outputs=before_outputs)
    scored = score_parts(scorer, Rows((), None, lambda: iter(bytes_rows(*range(250))), ANY).parts(16), settings)
    assert len(next(scored).rows) == 16 and len(scorer.asked) == 5
    scored.close()  # type: ignore[attr-defined]
    assert 20 <= len(scorer.prepared) <= 32


def test_every_part_is_scored_as_by_a_new_process() -> None:
    scorer = Fake()
    rows = Rows((), None, lambda: iter(bytes_rows(*range(10))), ANY)
    assert len([*score_parts(scorer, rows.parts(4), Settings(("value",), 2, 1))]) == 3
    assert scorer.asked == ["forget", [0, 1], [2, 3], "forget", [4, 5], [6, 7], "forget", [8, 9]]


@pytest.mark.parametrize(("batch_size", "part_size"), [(1, 128), (32, 128), (100, 400), (128, 512)])
def test_parts_are_whole_batches(batch_size: int, part_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "ROWS_PER_PART", 128)
    assert Settings((), batch_size, 1).part_size == part_size


def test_long_prompts_are_counted_by_rows(scorer: Scorer, listed: list[Row]) -> None:
    rows = [Row(row.image, row.source, LONG if i % 3 else row.prompt) for i, row in enumerate(listed[:9])]
    part = Part(0, tuple(rows), ANY)
    assert score_part(scorer, part, settings_of(scorer)).num_too_long == 6


# --------------------------------------------------------------------------------------------- what stops and goes on


class Job:
    """A job that can be stopped after some batches."""

    def __init__(self, scorer: Scorer, out: Path, listed: Sequence[Row]) -> None:
        self.scorer, self.out, self.listed = scorer, out, [*listed]
        self.skipped: list[int] = []
        self.facts: dict[str, Any] = {"model": "a1", "columns": ["x"]}

    def run(self, stop_after: int | None = None, *, overwrite: bool = False) -> Summary:
        settings, batches = settings_of(self.scorer), 0

        def after_batch(count: int) -> None:
            nonlocal batches
            batches += 1
            if batches == stop_after:
                raise Interrupted("in a test")

        rows, folder = rows_of(self.listed, PROMPTED if self.scorer.needs_prompt else ANY), PartsFolder.of(self.out)
        self.skipped.clear()
        with folder.claimed(self.facts, overwrite=overwrite):
            pending = folder.pending(rows.parts(settings.part_size), self.skipped.append)
            for scored in score_parts(self.scorer, pending, settings, after_batch):
                folder.write(scored)
            return folder.write_output(self.out, Columns.of(rows.columns, settings.columns))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_stopped_job_goes_on_to_the_same_bytes(
    scorer: Scorer, listed: list[Row], tmp_path: Path, suffix: str
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    whole, stopped = (Job(scorer, tmp_path / f"{name}{suffix}", listed) for name in ("whole", "stopped"))
    summary = whole.run()
    assert (summary.rows, summary.failed, summary.too_long) == (COUNT, 0, 0)
    for batches, skipped in ((2, []), (6, []), (3, [64])):
        with pytest.raises(Interrupted):
            stopped.run(batches)
        assert stopped.skipped == skipped and not stopped.out.exists()
    (stopped.out.with_name(stopped.out.name + ".parts") / ".part-0000002.jsonl.ab.tmp").touch()  # of a killed process
    assert stopped.run() == summary and stopped.skipped == [64]
    assert stopped.out.read_bytes() == whole.out.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"stopped{suffix}", f"whole{suffix}"]


def test_rows_that_were_changed_meanwhile_are_scored_again(scorer: Scorer, listed: list[Row], tmp_path: Path) -> None:
    job = Job(scorer, tmp_path / "out.csv", listed)
    with pytest.raises(Interrupted):
        job.run(9)
    job.listed[70] = Row("new.png", job.listed[70].source, "a new prompt", ("new",))
    job.run()
    assert job.skipped == [64]
    with (tmp_path / "out.csv").open(newline="") as file:
        assert [*csv.reader(file)][71][:3] == ["new.png", "a new prompt", "new"]


def test_parts_of_another_job_are_refused_or_removed(scorer: Scorer, listed: list[Row], tmp_path: Path) -> None:
    job = Job(scorer, tmp_path / "out.csv", listed)
    with pytest.raises(Interrupted):
        job.run(5)
    job.facts = {"model": "b2", "columns": ["x"]}
    message = error_of(job.run)
    assert message == (
        f"--out: '{tmp_path}/out.csv.parts' is of another job: model was 'a1', now 'b2'. Go on with the command of "
        "that job, or give another --out, or --overwrite."
    )
    job.run(overwrite=True)
    assert job.skipped == [] and [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_a_job_stopped_before_its_first_part_leaves_nothing(scorer: Scorer, listed: list[Row], tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        Job(scorer, tmp_path / "deep" / "out.csv", listed).run(1)
    assert not [*(tmp_path / "deep").iterdir()]


def test_a_folder_is_of_one_job_at_a_time(tmp_path: Path) -> None:
    folder = PartsFolder.of(tmp_path / "out.csv")
    with folder.claimed({"a": 1}, overwrite=False):
        advice = "held by another job, .* Wait for its end, or give another --out"
        with pytest.raises(ConfigError, match=advice), folder.claimed({"a": 1}, overwrite=True):
            pass
        assert folder.job() == {"a": 1}


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"number": 0, "rows": [[]]}', '{"rows": 1}', "\x00\n"])
def test_a_damaged_part_is_scored_again(tmp_path: Path, content: str) -> None:
    folder = PartsFolder(tmp_path)
    (tmp_path / "part-0000000.jsonl").write_text(content)
    assert not folder.has(Part(0, tuple(bytes_rows(1)), ANY))


def test_a_full_disk_is_named(
    scorer: Scorer, listed: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    job = Job(scorer, tmp_path / "out.csv", listed)
    with pytest.raises(Interrupted):
        job.run(6)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space") as caught:
        patch.setattr("os.fsync", full)
        job.run()
    assert caught.value.filename == f"{tmp_path}/out.csv.parts/part-0000001.jsonl"
    assert job.run().rows == COUNT and job.skipped == [64]


def test_failures_are_summed_up_of_earlier_parts_too(tmp_path: Path) -> None:
    job = Job(Fake(), tmp_path / "out.csv", bytes_rows(*[255] * 70, *[1] * 30))
    with pytest.raises(Interrupted):
        job.run(5)
    summary = job.run()
    assert (summary.rows, summary.failed, len(summary.failures), job.skipped) == (100, 70, 20, [64])
    assert summary.failures[0] == ("0", "a byte of 255 is no image.")


def test_an_empty_input_is_an_empty_table(tmp_path: Path) -> None:
    job = Job(Fake(), tmp_path / "out.csv", [])
    assert job.run().rows == 0
    assert (tmp_path / "out.csv").read_text() == "image,prompt,note,value,error\n"


def test_a_model_is_known_by_its_content(model: Path, tmp_path: Path) -> None:
    copied = write_folds(tmp_path / "copy")
    assert model_sha256(model) == model_sha256(copied) != model_sha256(model, [0])
    weights = copied / "fold_01" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert model_sha256(model) != model_sha256(copied)
    assert model_sha256("a name") != model_sha256("another name")
