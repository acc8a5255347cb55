"""`ipiqa export`: a folder to share, or an ONNX file."""

import argparse
from pathlib import Path
from typing import Any

from ipiqa.cli.arguments import add_command, path, whole_number


def add_commands(commands: Any) -> None:
    """Adds `ipiqa export`."""
    more = " OUT is a new folder, with weights, settings and a model card, or a file that ends with .onnx."
    parser = add_command(commands, "export", export, "write a model to share, as a folder or as ONNX", more)
    parser.add_argument(
        "model", metavar="MODEL", help="run folder, fold folder, best.pt, or what else ipiqa.load takes"
    )
    parser.add_argument("out", type=path("OUT"), metavar="OUT", help="folder or FILE.onnx to write")
    parser.add_argument("--fold", type=whole_number("--fold", 0, 10**5), metavar="K", help="only this fold of a run")


def export(arguments: argparse.Namespace) -> int:
    """Writes the folder or the file and prints what it is."""
    out, folds = Path(arguments.out), None if arguments.fold is None else [arguments.fold]
    if out.suffix.lower() == ".onnx":
        from ipiqa.export.onnx import export_onnx

        difference = export_onnx(arguments.model, out, folds=folds)
        print(f"{out}: scores in onnxruntime differ from PyTorch's by {difference:.1e} of their scale at most")
    else:
        from ipiqa.export.folder import export_folder

        number = export_folder(arguments.model, out, folds=folds)
        models = "models, one per fold and seed" if number > 1 else "model"
        print(f"{out}: {number} {models}; what is known of it is in README.md")
    return 0
