"""Templates -> text; what they may write into Markdown and LaTeX without it meaning something there."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

_YAML_WORDS = ("null", "true", "false", "yes", "no", "on", "off", "y", "n", ".inf", ".nan")
MISSING = "-"  # a metric that a target or checkpoint does not have


def render(template: str | Path, **context: Any) -> str:
    """Returns the text of a file in templates/, or elsewhere; in HTML, everything written into it is escaped."""
    path = Path(__file__).parent / "templates" / template
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(path.parent),
        autoescape=jinja2.select_autoescape(["html.j2", "svg.j2"]),
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"md": escaped, "tex": latex_escaped, "tex_figure": latex_figure, "one_line": one_line}
    environment.filters["yaml"] = yaml_text
    return environment.get_template(path.name).render(context)


def script_hash(script: str) -> str:
    """Returns what names a script in a content security policy that lets no other run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def yaml_text(value: object) -> str:
    """Returns text as a YAML value, in quotes where it would mean something else without."""
    text = str(value)
    is_plain = re.fullmatch(r"[A-Za-z./][\w./-]*", text) and text.lower() not in _YAML_WORDS
    return text if is_plain else json.dumps(text.replace("${", "\\${"), ensure_ascii=False)


def one_line(text: str) -> str:
    """Returns text without line breaks, runs of white space as one space."""
    return " ".join(text.split())


def escaped(text: str) -> str:
    """Returns text that markdown and an HTML page made from it show as it is, on one line."""
    return one_line(re.sub(r"[\\`*_|\[\]]|<(?=[A-Za-z/!?])", r"\\\g<0>", text))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a markdown table whose source is aligned as well; cells are plain text."""
    cells = [[escaped(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(c.ljust(w) for c, w in zip(row, widths, strict=True))} |" for row in cells)


def latex_figure(text: str) -> str:
    """Returns the text of a cell as mathematics."""
    if text in (MISSING, "nan"):
        return "--"
    for sign, command in (("±", r"\pm"), ("↑", r"{\uparrow}"), ("↓", r"{\downarrow}")):
        text = text.replace(sign, command)
    return f"${text}$"


def latex_escaped(text: str) -> str:
    """Returns text without special meaning to LaTeX, on one line."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {c: f"\\{c}" for c in "&%$#_{}"}
    return "".join(special.get(c, c) for c in one_line(text))
