"""What the repository promises about itself: layers, file sizes, configs, commands and versions that agree."""

from __future__ import annotations

import ast
import functools
import importlib
import itertools
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

import ipiqa
from ipiqa import cli, registry
from ipiqa.ablation import load_grid
from ipiqa.cli.train import script
from ipiqa.config.loading import load_config
from ipiqa.files import EXTRAS

# Every module or package of ipiqa and its layer. An import points down, or to a part that stands before it in its own
# layer here; never in a circle.
LAYERS = {
    "errors": 0, "registry": 0, "files": 0, "dist": 0, "prompts": 0,
    "metrics": 1, "processors": 1, "datasets": 1,
    "tasks": 2, "engine": 2, "models": 2,
    "config": 3, "scorers": 3,
    "build": 4,
    "evaluation": 5, "training": 5, "scoring": 5,
    "report": 6, "ablation": 6, "bench": 6, "demo": 6, "explain": 6, "export": 6,
    "serve": 7, "cli": 7,
}  # fmt: skip
SAME_LAYER = {
    ("datasets", "processors"),
    ("config", "scorers"),
    ("training", "evaluation"),
    ("ablation", "report"),
    ("explain", "report"),
    ("bench", "report"),
    ("bench", "ablation"),
    ("export", "report"),
    ("cli", "serve"),
}

# pip's name -> the name to import, where they differ
IMPORT_NAMES = {"open_clip_torch": "open_clip", "pillow": "PIL", "pyyaml": "yaml"}
NEEDED_BY_OTHERS = {"ftfy", "regex"}  # reasons in requirements.txt

ROOT_FILES = [*REPOSITORY.glob("*.py")]
PACKAGE_FILES = sorted((REPOSITORY / "ipiqa").rglob("*.py"))
OTHER_FILES = sorted(path for folder in ("tests", "benchmarks") for path in (REPOSITORY / folder).rglob("*.py"))
PYTHON_FILES = [*ROOT_FILES, *PACKAGE_FILES, *OTHER_FILES]
YAMLS = sorted(str(p.relative_to(REPOSITORY)) for p in (REPOSITORY / "ipiqa" / "projects").rglob("*.yaml"))
PROJECTS = [name for name in YAMLS if not name.endswith("/ablation.yaml")]  # those are grids: see test_ablation.py
DOCS = sorted(str(p.relative_to(REPOSITORY)) for p in (REPOSITORY / "docs").glob("*.md"))
PAGES = ["README.md", "CONTRIBUTING.md", "cache/README.md", *DOCS]
PROGRAMS = ("make", "python", "torchrun", "ipiqa")


def module_name(path: Path) -> str:
    """Returns the dotted name of a file of the package.

    >>> module_name(REPOSITORY / "ipiqa" / "models" / "__init__.py")
    'ipiqa.models'
    """
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE_FILES}


def imported(path: Path) -> Iterator[str]:
    """Yields what a file imports, anywhere in it: modules of ipiqa by their full names, others by theirs."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


def part_of(module: str) -> str:
    """Returns the part of ipiqa a module belongs to.

    >>> part_of("ipiqa.models.pooling"), part_of("ipiqa")
    ('models', '')
    """
    return module.partition(".")[2].split(".")[0]


GRAPH = {name: sorted({m for m in imported(path) if m in MODULES}) for name, path in MODULES.items()}


def test_every_part_has_a_layer() -> None:
    missing = {part_of(name) for name in MODULES} - {"", "__main__"} - set(LAYERS)
    assert not missing, f"give these a layer in LAYERS, and a line in the code map of docs/design.md: {sorted(missing)}"


@pytest.mark.parametrize("module", [name for name in GRAPH if name not in ("ipiqa", "ipiqa.__main__")])
def test_imports_point_down(module: str) -> None:
    own = LAYERS[part_of(module)]
    for target in GRAPH[module]:
        if target == "ipiqa" or part_of(target) == part_of(module):
            continue
        layer = LAYERS[part_of(target)]
        beside = layer == own and (own == 0 or (part_of(module), part_of(target)) in SAME_LAYER)
        assert layer < own or beside, f"{module} (L{own}) imports {target} (L{layer})"


def test_imports_make_no_circle() -> None:
    done: set[str] = set()

    def visit(module: str, chain: tuple[str, ...]) -> None:
        assert module not in chain, " -> ".join((*chain[chain.index(module) :], module))
        if module not in done:
            # a package and its own files name each other by the way Python loads them
            for target in GRAPH[module]:
                if target != "ipiqa" and not f"{module}.".startswith(f"{target}."):
                    visit(target, (*chain, module))
            done.add(module)

    for module in GRAPH:
        visit(module, ())


def test_the_package_itself_imports_nothing_heavy() -> None:
    assert GRAPH["ipiqa"] == []
    heavy = "{'torch', 'numpy', 'pandas', 'scipy', 'open_clip', 'omegaconf', 'PIL'}"
    code = f"import sys, ipiqa, ipiqa.cli; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert found.stdout.strip() == "[]", "`ipiqa --help` must answer at once"


def test_only_config_knows_omegaconf() -> None:
    users = [name for name, path in MODULES.items() if any(m.split(".")[0] == "omegaconf" for m in imported(path))]
    assert users == ["ipiqa.config.loading"]


def test_requirements_are_those_that_are_imported() -> None:
    lines = (line.partition("#")[0].strip() for line in (REPOSITORY / "requirements.txt").read_text().splitlines())
    required = {re.split("[<>=!~ ]", line)[0] for line in lines if line}
    third_party = {m.split(".")[0] for path in PACKAGE_FILES for m in imported(path)} - {"ipiqa"}
    third_party -= set(sys.stdlib_module_names) | set(EXTRAS)
    assert {IMPORT_NAMES.get(name, name) for name in required - NEEDED_BY_OTHERS} == third_party
    assert required >= NEEDED_BY_OTHERS


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_files_stay_readable(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    assert path.stem not in ("utils", "util", "helpers", "common", "misc")


def test_nothing_but_ipiqa_is_installed() -> None:
    from setuptools import find_packages

    assert all(name.split(".")[0] == "ipiqa" for name in find_packages(str(REPOSITORY), include=["ipiqa", "ipiqa.*"]))
    folders = {path.parent for path in PACKAGE_FILES}
    assert all((folder / "__init__.py").is_file() for folder in folders), (
        "a folder without __init__.py is not installed"
    )


@pytest.mark.parametrize("cfg", PROJECTS)
def test_every_project_loads_and_survives_a_round_trip(
    cfg: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    config = load_config(cfg)
    (tmp_path / "shown.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(tmp_path / "shown.yaml") == config
    project, name = Path(cfg).parent.name, Path(cfg).stem
    assert config.run.output_dir == f"output/{project}/{name}"


def test_the_published_projects_are_there() -> None:
    expected = [f"agiqa{n}k/{name}" for n in (1, 3) for name in ("ipiqa", "ipiqa_224")] + [
        "demo/image_only",
        "demo/ipiqa",
        *(f"agiqa3k/{name}" for name in ("siglip2", "views_224", "vit_b32_levels")),
    ]
    assert {f"ipiqa/projects/{name}.yaml" for name in expected} <= set(PROJECTS)


def test_versions_agree() -> None:
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    found = re.search(r"^## \[(\d.*?)\] - (\d{4}-\d\d-\d\d)$", changelog, re.MULTILINE)
    assert found is not None
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert found[1] == citation["version"] == ipiqa.__version__
    assert found[2] == str(citation["date-released"])


def text_files() -> list[Path]:
    """Returns the files of the repository that are text: what git tracks, or would track."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git here to list the files of the repository")
    binary = (".png", ".jpg", ".pt", ".xlsx", ".safetensors", ".gif", ".webp")
    return [REPOSITORY / name for name in listed if not name.endswith(binary) and (REPOSITORY / name).is_file()]


def test_no_path_of_anyones_machine() -> None:
    machine = re.compile(r"(?<![\w.:/~*-])/(?:work|home|Users|mnt|workspace)/\w")
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()}"
        for path in text_files()
        if path != Path(__file__).resolve()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if machine.search(line)
    ]
    assert not found, "\n".join(found)


# ------------------------------------------------------------------------------------------ what the pages tell to type


def blocks(page: str, language: str) -> list[str]:
    """Returns the fenced blocks of a page in one language."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    return [
        block
        for found, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        if found == language
    ]


def commands() -> Iterator[tuple[str, str]]:
    """Yields (page, command line) of every command in the pages; of shell scripts those that start a program."""
    for page in PAGES:
        for block in blocks(page, "bash"):
            is_script = block.startswith("#!")
            for line in block.replace("\\\n", " ").splitlines():
                command = line.strip().removeprefix("exec ")
                known = command.split(" ")[0] in PROGRAMS
                if command and (known if is_script else not command.startswith("#")):
                    yield page, " ".join(command.split())


@pytest.mark.parametrize(("page", "line"), list(commands()))
def test_every_command_in_the_pages_exists(
    page: str, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    words = shlex.split(line, comments=True)
    if words[0] == "torchrun" or words[:3] == ["python", "-m", "torch.distributed.run"]:
        words = ["python", *words[next(i for i, word in enumerate(words) if word.endswith(".py")) :]]
    program, *rest = words
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert {word for word in rest if "=" not in word} <= set(targets)
        return
    if program == "source":
        assert rest == [".venv/bin/activate"]
        return
    if program == "python":
        scripts = {
            "train_agiqa1k.py": functools.partial(script, "agiqa_1k"),
            "train_agiqa3k.py": functools.partial(script, "agiqa_3k"),
            "pretrain_image2prompt.py": functools.partial(script, None),
        }
        assert rest[0] in scripts and (REPOSITORY / rest[0]).is_file()
        start = functools.partial(scripts[rest[0]], ["--help"])
    else:
        assert program == "ipiqa"
        words = list(itertools.takewhile(lambda word: not word.startswith("--"), rest))
        start = functools.partial(cli.main, [*words, "--help"])
    with pytest.raises(SystemExit) as ended:
        start()
    assert ended.value.code == 0, f"{page}: {line}: {capsys.readouterr().err}"
    shown = capsys.readouterr().out
    for flag in (word for word in rest if word.startswith("--")):
        assert flag in shown, f"{page}: {line}: no {flag}"
    if "--cfg-path" in rest:
        overrides = [word for word in rest if re.match(r"[a-z_.]+=", word)]
        load_config(rest[rest.index("--cfg-path") + 1], *overrides)


def page_table(page: str, heading: str) -> list[list[str]]:
    """Returns the cells of the table of a page that starts with this heading row."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    assert heading in text, f"{page}: {heading}"
    lines = text.partition(heading)[2].strip("\n").splitlines()[1:]
    table = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


@pytest.mark.parametrize(
    ("question", "settings"), [tuple(row) for row in page_table("docs/experiments.md", "| question | settings |")]
)
def test_every_ablation_is_a_setting(question: str, settings: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    plain = load_config("ipiqa/projects/agiqa3k/ipiqa.yaml")
    assert load_config("ipiqa/projects/agiqa3k/ipiqa.yaml", *settings.strip("`").split()) != plain, question


def test_the_pages_name_every_registered_part() -> None:
    rows = page_table("docs/configuration.md", "| kind | names |")
    documented = {kind: re.findall("`(.+?)`", names) for kind, names in rows}
    assert documented == {kind: registry.list_registered(kind) for kind in (*registry.KINDS, *registry.FUNCTIONS)}


def test_the_code_map_is_the_code() -> None:
    map_block = next(block for block in blocks("docs/design.md", "") if "cross_validation.py" in block)
    listed = dict(re.findall(r"^  (\w+)(?:\.py|/)\s+L(\d)", map_block, re.MULTILINE))
    parts = {part_of(name) for name in MODULES} - {"", "__main__"}
    assert {part: int(layer) for part, layer in listed.items()} == {part: LAYERS[part] for part in parts}


@pytest.mark.parametrize("block", [block for page in PAGES for block in blocks(page, "yaml")])
def test_yaml_in_the_pages_loads(block: str, tmp_path: Path) -> None:
    text = block.replace("base: ../", f"base: {REPOSITORY}/ipiqa/projects/")
    if text.startswith("config: "):
        text = text.replace("config: ", f"config: {REPOSITORY}/ipiqa/projects/agiqa3k/")
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    (load_grid if text.startswith("config: ") else load_config)(tmp_path / "config.yaml")


@pytest.mark.parametrize("block", [block for page in PAGES for block in blocks(page, "python")])
def test_python_in_the_pages_names_what_exists(block: str) -> None:
    tree = ast.parse(textwrap.dedent(block))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), node.module
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ipiqa":
            assert hasattr(ipiqa, node.attr), node.attr


def anchors(page: Path) -> set[str]:
    """Returns the names under which the headings of a page can be linked."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = REPOSITORY / page
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            name, _, anchor = link.partition("#")
            target = path.parent / name if name else path
            assert target.is_file(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", DOCS)
def test_the_readme_links_every_guide(page: str) -> None:
    assert f"]({page})" in (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_finished() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert "TO BE FILLED" not in text
    assert len(text.splitlines()) <= 280
