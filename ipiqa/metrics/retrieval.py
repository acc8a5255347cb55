"""How well images find their own prompts."""

import numpy as np

CHUNK = 1024  # images compared with all prompts at once: bounds memory


def retrieval(image_features: np.ndarray, prompt_features: np.ndarray) -> dict[str, float]:
    """Returns recall at 1 and at 5, and the mean cosine of an image and its own prompt.

    Both features are (N, D), of the images and their own prompts; equal rows are one prompt. An image is recalled at k
    when fewer than k of the other distinct prompts are nearer to it than its own.
    """
    images, prompts = _normalised(image_features), _normalised(prompt_features)
    distinct, place = np.unique(prompts, axis=0, return_inverse=True)
    place = place.reshape(-1, 1)
    nearer, own = np.empty(len(images), dtype=np.int64), np.empty((len(images), 1))
    for start in range(0, len(images), CHUNK):
        part = slice(start, start + CHUNK)
        cosines = images[part] @ distinct.T  # (CHUNK, P)
        own[part] = np.take_along_axis(cosines, place[part], axis=1)
        nearer[part] = (cosines > own[part]).sum(axis=1)
    return {f"recall_at_{k}": float((nearer < k).mean()) for k in (1, 5)} | {"mean_cosine": float(own.mean())}


def _normalised(features: np.ndarray) -> np.ndarray:
    features = features.astype(np.float64)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
