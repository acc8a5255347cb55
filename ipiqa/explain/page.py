"""An explanation as one HTML file: nothing is loaded, nothing runs, everything from the data is escaped."""

import base64
import io
from pathlib import Path

from PIL import Image

from ipiqa.explain import picture
from ipiqa.explain.explanation import Explanation
from ipiqa.report.render import render

_SIDE = 480  # of the images, in pixels


def explanation_page(explanation: Explanation, image: Image.Image) -> str:
    """Returns the page of an explanation of an upright RGB image, as HTML text."""
    image, words = picture.fitted(image, _SIDE), explanation.words
    images = [("image", "as it was given", _data_uri(image))]
    images += [(*picture.caption(m), _data_uri(picture.overlay(image, m.weights))) for m in explanation.maps]
    sections = []
    for i, strength in enumerate(picture.strengths(explanation).T):
        numbers = [picture.with_std(folds, "+") for folds in words.differences[:, : words.num_read, i].T]
        chips = list(zip(words.words, numbers, strength.tolist(), strict=False))  # the words that are read
        sections.append((picture.score(explanation, i), explanation.targets[i].meaning, chips))
    template = Path(__file__).parent / "templates" / "explain.html.j2"
    about = {"prompt": explanation.prompt, "notes": picture.notes(explanation)}
    return render(template, images=images, sections=sections, **about)


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
