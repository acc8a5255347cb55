"""Encoders, fusions, heads and the models made of them. Importing the package registers its parts."""

from ipiqa.models import fusion, heads, image_encoder, ipiqa, prompt_encoder

__all__ = ["fusion", "heads", "image_encoder", "ipiqa", "prompt_encoder"]
