"""Packaging of IP-IQA: `pip install -e .`, or `make install`, which makes the virtual environment too."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent

EXTRAS = {
    "shards": ["braceexpand>=0.1.7", "pyarrow>=14.0"],
    "app": ["fastapi>=0.115", "python-multipart>=0.0.18", "uvicorn>=0.30"],
    "ray": ["ray>=2.40", "pyarrow>=14.0"],
    "export": ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.2"],
}


def version() -> str:
    found = re.search(
        r'^__version__ = "(.+)"$', (HERE / "ipiqa" / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert found is not None
    return found[1]


def requirements() -> list[str]:
    lines = (HERE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in (line.partition("#")[0].strip() for line in lines) if line]


setup(
    name="ipiqa",
    version=version(),
    description="Train, evaluate and run models that score AI-generated images against their prompts",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The IP-IQA contributors",
    license="BSD-3-Clause",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["ipiqa", "ipiqa.*"]),
    package_data={"ipiqa": ["*/*.yaml", "*/*/*.yaml", "*/*.json", "*/templates/*", "serve/page.html"]},
    install_requires=requirements(),
    extras_require=EXTRAS
    | {
        "dev": [
            *sorted({package for extra in EXTRAS.values() for package in extra}),
            "hypothesis>=6.100",
            "mypy>=1.11",
            "pytest>=8.0",
            "ruff>=0.17,<0.18",  # the next one may format differently
        ],
    },
    entry_points={"console_scripts": ["ipiqa = ipiqa.cli:main"]},
)
