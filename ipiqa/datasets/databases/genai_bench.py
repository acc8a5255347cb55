"""The database GenAI-Bench as a registered dataset."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ipiqa.datasets.databases.annotated import ALIGNMENT, About, AnnotatedImages
from ipiqa.datasets.readers import read_json
from ipiqa.datasets.table import Layout, Target
from ipiqa.errors import DataError
from ipiqa.registry import register

if TYPE_CHECKING:
    import pandas

FORM = '{"00000": {"prompt": "...", "models": {"DALLE_3": [3, 4, 3], ...}}, ...}'


@register("dataset", "genai_bench")
@dataclass(frozen=True, kw_only=True)
class GenAiBench(AnnotatedImages):
    """GenAI-Bench: 527 or 1,600 prompts by six generators, three ratings of alignment each (arXiv:2406.13743).

    Read from `genai_image.json`; images are `<generator>/<prompt number>.jpeg`.
    """

    about: ClassVar[About] = About(
        name="GenAI-Bench", num_rows=(3162, 9600), source="https://huggingface.co/datasets/zhiqiulin/GenAI-Bench-527",
        licence="see its page; that of the images is not known to us", raters="3, every rating is there",
    )  # fmt: skip

    def layout(self) -> Layout:
        return Layout(
            image="{generator}/{index}.jpeg", prompt=["prompt"], segments={"generator": ["generator"]},
            targets={Target("alignment", 1.0, 5.0, ALIGNMENT): ["ratings"]},
        )  # fmt: skip

    def read(self) -> "pandas.DataFrame":
        import pandas

        path = Path(self.annotations)
        content = read_json(path, "dataset.annotations", self.hint)
        try:
            rows = [(index, str(entry["prompt"]), generator, json.dumps(ratings)) for index, entry in content.items()
                    for generator, ratings in entry["models"].items()]  # fmt: skip
        except (AttributeError, KeyError, TypeError):
            raise DataError(f"dataset.annotations: '{path}' is of another form. It should be {FORM}.") from None
        if not rows:
            raise DataError(f"dataset.annotations: '{path}' holds no ratings. It should be {FORM}.")
        index = pandas.RangeIndex(1, len(rows) + 1, name="rating")
        return pandas.DataFrame(rows, index, ["index", "prompt", "generator", "ratings"], dtype=object)
