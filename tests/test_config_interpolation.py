"""${section.setting} in a config, and what OmegaConf would do beyond it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import CONFIG

from ipiqa.config.loading import MORE_THAN_REFERENCE, _escaped, load_config
from ipiqa.errors import ConfigError


@pytest.fixture
def cfg(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(CONFIG.format(folder="data"))
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${run.output_dir}/more", "data/output/toy/more"),
        ("${image_size}:${split.seed}", "32:1"),
        (r"a\${b:c}", "a${b:c}"),  # escaped: text
        ("a:b}", "a:b}"),
    ],
)
def test_references_are_followed_and_escapes_kept(text: str, value: str, cfg: Path) -> None:
    assert load_config(cfg, f"dataset.images={text}").dataset["images"] == value


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("run.output_dir=${oc.env:HOME}", "run.output_dir: '${oc.env:HOME}'"),
        ("run.output_dir=a/${ oc.env : HOME}", "run.output_dir: 'a/${ oc.env : HOME}'"),
        ("run.output_dir=${oc.create:${oc.env:HOME}}", "run.output_dir: '${oc.create:${oc.env:HOME}}'"),
        ("run.output_dir=${${run.amp}.env:HOME}", "run.output_dir: '${${run.amp}.env:HOME}'"),
        (r"run.output_dir=\\${oc.env:HOME}", "run.output_dir: "),  # an escaped backslash before it
        ("dataset.targets=['${oc.env:HOME}']", "dataset.targets: '${oc.env:HOME}'"),
        ("model.head={name: mlp, dropout: '${oc.decode:1}'}", "model.head.dropout: '${oc.decode:1}'"),
        ("run.output_dir=${run.${run.amp}}", "run.output_dir: '${run.${run.amp}}'"),
        ("model=${oc.dict.values:run}", "model: '${oc.dict.values:run}'"),
    ],
)
def test_functions_are_refused(override: str, where: str, cfg: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(cfg, override)
    message = str(caught.value)
    assert message.startswith(where)
    assert message.endswith(" is more than a reference. Write a plain value, or ${section.setting}.")
    assert "/root" not in message and "\n" not in message


def test_functions_in_a_base_and_in_the_references_form_are_refused(cfg: Path) -> None:
    cfg.write_text(cfg.read_text().replace("data/images", "${oc.env:HOME}"))
    (cfg.parent / "leaf.yaml").write_text("base: toy.yaml\nimage_size: 64\n")
    (cfg.parent / "theirs.yaml").write_text("model: {base_ckpt: '${oc.env:HOME}'}\n")
    for name, where in (("leaf.yaml", "dataset.images"), ("theirs.yaml", "model.base_ckpt")):
        with pytest.raises(ConfigError, match=rf"^{where}: '\$\{{oc.env:HOME\}}' is more than a reference"):
            load_config(cfg.parent / name)


@given(st.text("\\\\${}:a"))
def test_escaped_text_calls_nothing(text: str) -> None:
    assert not MORE_THAN_REFERENCE.search(_escaped(text))
