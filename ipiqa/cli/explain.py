"""`ipiqa explain`: where in an image and on which words of a prompt a score hangs."""

import argparse
from pathlib import Path
from typing import Any

from ipiqa.cli.arguments import add_command, path
from ipiqa.errors import ConfigError


def add_commands(commands: Any) -> None:
    """Adds `ipiqa explain`."""
    more = " It writes a picture and a page, and prints what each word brings."
    parser = add_command(commands, "explain", run, "show what the scores of an image depend on", more)
    parser.add_argument("model", type=path("model"), metavar="MODEL", help="bundle, checkpoint, fold or run folder")
    parser.add_argument("image", type=path("image"), metavar="IMAGE", help="image file")
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="its prompt; none for models that read none")
    out = "picture to write; the page ends with .html instead (default: %(default)s)"
    parser.add_argument("--out", type=path("--out"), default="why.png", metavar="PNG", help=out)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Writes the picture and the page, and prints what each word brings."""
    out, page = Path(arguments.out), Path(arguments.out).with_suffix(".html")
    if out.suffix.lower() != ".png" or out.resolve() == Path(arguments.image).resolve():
        raise ConfigError(
            f"--out: '{out}' is the image itself or no .png. Give the name of a picture, such as why.png."
        )

    from ipiqa.explain import explain
    from ipiqa.explain.picture import caption, draw, explanation_page, notes, with_std
    from ipiqa.files import replacing, write_text
    from ipiqa.scoring.images import picture
    from ipiqa.scoring.loading import load

    explanation = explain(load(arguments.model, arguments.device), arguments.image, arguments.prompt)
    image, words = picture(arguments.image), explanation.words
    with replacing(out, "wb") as file:
        draw(explanation, image).save(file, "PNG", optimize=True)
    write_text(page, explanation_page(explanation, image))

    labels = ["score", *(f"  {word}" for word in words.words[: words.num_read])]
    width = min(max(map(len, labels)), 40)
    print(" " * width, *(f"{target.name:>15}" for target in explanation.targets))
    for i, label in enumerate(labels):
        numbers = words.differences[:, i - 1] if i else explanation.scores  # (F, T)
        print(f"{label[:width]:{width}}", *(f"{with_std(folds, '+' * bool(i)):>15}" for folds in numbers.T))
    print(*notes(explanation), *(": ".join(caption(heat)) for heat in explanation.maps), sep="\n")
    print(f"Picture: {out}\nPage: {page}")
    return 0
