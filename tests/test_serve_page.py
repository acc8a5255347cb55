"""The page for people, driven in Chromium: what it shows, ranks and explains, on a desk and on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import WidthScorer, images_of, png, serving
from toy import write_config
from webdriver import Browser, browser

import ipiqa
from ipiqa.config.loading import load_config
from ipiqa.explain import explain
from ipiqa.scoring.scorer import Scorer
from ipiqa.serve.bodies import Limits
from ipiqa.training.cross_validation import run

pytestmark = pytest.mark.slow

NAMES = "return [...document.querySelectorAll('.head h3')].map(h => h.textContent)"
SCORES = "return [...document.querySelectorAll('.card .target b')].map(b => Number(b.textContent))"
SCORED = "document.querySelectorAll('.target').length === arguments[0]"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scorer, list[Path]]:
    folder = tmp_path_factory.mktemp("toy")
    return ipiqa.load(run(load_config(write_config(folder)))), images_of(folder)[:6]


@pytest.fixture(params=[1280, 390], ids=["desk", "phone"])
def window(request: pytest.FixtureRequest) -> Iterator[Browser]:
    with browser(request.param) as opened:
        yield opened
        assert opened.run("return document.documentElement.scrollWidth") <= request.param  # nothing to scroll sideways
        assert opened.messages() == []


def test_images_are_scored_ranked_and_explained(
    window: Browser, toy: tuple[Scorer, list[Path]], tmp_path: Path
) -> None:
    scorer, paths = toy
    long = tmp_path / f"{'a-long-name-' * 15}.png"
    long.write_bytes(png(60, 900))
    bad = tmp_path / "<b>bad.png"
    bad.write_bytes(b"no image")
    paths = [*paths, long]
    prompt = "a red tree & a <i>house</i> " + "verylongword" * 9
    ranked = scorer.rank(paths, prompt)
    with serving(scorer) as port:
        window.open(f"http://127.0.0.1:{port}/")
        window.type("#files", "\n".join(map(str, [*paths, bad])))
        window.until("document.getElementById('status').textContent.startsWith('Type the prompt')")
        window.type("#prompt", prompt)
        window.click("form button")
        window.until(SCORED, 2 * len(paths))
        window.until("document.getElementById('status').textContent.includes('7 of 8 scored, 1 cannot be')")
        assert window.run(NAMES) == [*(Path(name).name for name in ranked["image"]), bad.name]
        assert "is not an image" in window.run("return document.querySelector('.card:last-child .note').textContent")
        shown = ranked[["quality", "alignment"]].to_numpy().reshape(-1)
        assert window.run(SCORES) == pytest.approx(shown, abs=0.00501)
        facts = window.run("return document.querySelector('.target .soft').textContent").replace("\u00a0", " ")
        first = ranked.iloc[0]
        percentile, std = int(first["quality_percentile"]), first["quality_std"]
        assert facts == f"above {percentile} % of the images trained on, ± {std:.2f} over folds"
        mark = window.run("return document.querySelector('.scale .mark').style.left")
        assert float(mark.rstrip("%")) == pytest.approx(20 * first["quality"], abs=0.01)
        window.run("const by = document.getElementById('by'); by.value = 'alignment'; by.onchange()")
        by_alignment = scorer.rank(paths, prompt, by="alignment")["image"]
        assert window.run(NAMES)[:-1] == [Path(name).name for name in by_alignment]

        window.click("[id^=why]")
        window.until("document.querySelectorAll('.maps canvas').length === 2")
        assert window.run("return document.activeElement.id").startswith("why")  # the keyboard is where it was
        words = window.run("return [...document.querySelectorAll('.words')].map(p => p.innerText.split(/\\s+/))")
        best = next(path for path in paths if path.name == Path(by_alignment.iloc[0]).name)
        for shown, expected in zip(
            words, explain(scorer, best, prompt).words.differences.transpose(2, 0, 1), strict=True
        ):
            assert shown[::4] == prompt.split()
            numbers = [float(text.replace("\u2212", "-")) for text in shown[1::4]]
            assert numbers == pytest.approx(expected.mean(axis=0), abs=0.00501)
            assert [*map(float, shown[3::4])] == pytest.approx(expected.std(axis=0, ddof=1), abs=0.00501)
        assert "Mean of 2 folds" in window.run("return document.querySelector('.why').innerText")
        window.click(".card:last-child [id^=remove]")
        assert len(window.run(NAMES)) == len(paths)
        window.click("#clear")
        assert window.run(NAMES) == []


def test_images_come_by_drop_and_by_paste_and_the_prompt_can_change(window: Browser) -> None:
    give = """const data = new DataTransfer(), canvas = document.createElement('canvas'), [kind, width] = arguments
      canvas.width = width, canvas.height = 30
      const bytes = Uint8Array.from(atob(canvas.toDataURL().split(',')[1]), c => c.charCodeAt(0))
      data.items.add(new File([bytes], kind + '.png', {type: 'image/png'}))
      const options = {bubbles: true, cancelable: true, [kind === 'paste' ? 'clipboardData' : 'dataTransfer']: data}
      document.body.dispatchEvent(new (kind === 'paste' ? ClipboardEvent : DragEvent)(kind, options))"""
    scorer = WidthScorer()
    with serving(scorer, Limits(queue=2, pairs=1)) as port:  # 429 is met, and tried again
        window.open(f"http://127.0.0.1:{port}/")
        window.until("document.querySelectorAll('#by option').length === 3")
        window.type("#prompt", "first\ue007")  # Enter
        for i in range(4):
            window.run(give, "drop" if i % 2 else "paste", 30 + i)
        window.until(SCORED, 8)
        assert window.run(NAMES) == ["drop.png", "paste.png"] * 2
        assert window.run(SCORES)[::2] == [33, 32, 31, 30]
        assert not window.run("return document.getElementById('warning').checkVisibility()")
        window.run("document.getElementById('prompt').value = 'long '.repeat(90)")
        window.type("#prompt", "\ue007")
        window.until("document.getElementById('warning').textContent.startsWith('the prompt is longer')")
        window.until(SCORED, 8)
        window.run("document.getElementById('prompt').value = ''")
        window.type("#prompt", "second\ue007")
        window.until(SCORED, 8)
        assert window.run("return document.getElementById('status').textContent").endswith("for “second”.")
    read = [prompt[:6] for batch in scorer.batches for prompt in batch]
    assert sorted(read) == ["first"] * 4 + ["long l"] * 4 + ["second"] * 4
    with browser(390) as other:
        with serving(scorer) as port:
            other.open(f"http://127.0.0.1:{port}/")
            other.type("#prompt", "fail\ue007")
            other.run(give, "drop", 50)
            other.until("document.querySelector('.card .note')?.textContent.startsWith('internal error')")
        other.click("form button")
        other.until("document.querySelector('.card .note')?.textContent.startsWith('the server cannot be reached')")


def test_a_model_that_reads_no_prompt_asks_for_none(window: Browser, tmp_path: Path) -> None:
    cfg = write_config(tmp_path)
    config = load_config(cfg, "model.name=image_only", "run.num_folds=1", "dataset.targets=[quality]")
    scorer = ipiqa.load(run(config))
    path = images_of(tmp_path)[0]
    with serving(scorer) as port:
        window.open(f"http://127.0.0.1:{port}/")
        window.type("#files", str(path))
        window.until(SCORED, 1)
        assert window.run(SCORES) == pytest.approx(scorer.score(path)[0], abs=0.00501)
        assert not window.run("return document.getElementById('prompt').checkVisibility()")
        assert "over folds" not in window.run("return document.body.innerText")
        window.click("[id^=why]")
        window.until("document.querySelectorAll('.maps canvas').length")
        assert "Which words" not in window.run("return document.body.innerText")


def test_a_file_larger_than_the_limit_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(bytes((2 << 20) + 1))
    with browser(800) as window, serving(WidthScorer(), Limits(upload=2 << 20)) as port:
        window.open(f"http://127.0.0.1:{port}/")
        window.type("#prompt", "a\ue007")
        window.type("#files", str(tmp_path / "large.png"))
        window.until(
            "document.querySelector('.card .note')?.textContent === 'the file has 2.1 MB, and the limit is 2 MB.'"
        )


def test_the_curve_is_the_spread_of_the_scores_trained_on() -> None:
    scorer = WidthScorer()  # its quantiles are 0, 1, ..., 100: all alike
    with browser(800) as window, serving(scorer) as port:
        window.open(f"http://127.0.0.1:{port}/")
        window.until("document.querySelectorAll('#by option').length === 3")
        flat = window.run("return curve(model.targets[0])")
        heights = [float(point.split(" ")[1].rstrip("L")) for point in flat.split("L")[1:-1]]
        assert len(heights) == 40 and heights == pytest.approx([2] * 40, abs=0.05)
        assert window.run("return curve(model.targets[1])") == ""
        ties = "model.trained_on.quantiles.size = [...Array(51).fill(0), ...Array(50).fill(100)]"
        two = window.run(f"{ties}; return curve(model.targets[0])")
        heights = [float(point.split(" ")[1].rstrip("L")) for point in two.split("L")[1:-1]]
        assert heights[0] < 8 and heights[-1] < 8 and heights[20] > 29  # half of them at each end
