"""Models that somebody shares on the Hugging Face Hub, or on a server of its kind (HF_ENDPOINT)."""

from pathlib import Path

from ipiqa import __version__
from ipiqa.errors import DataError
from ipiqa.models.bundle import CONFIG, README, WEIGHTS
from ipiqa.models.weights import one_line, printable

HUB = "hf-hub:"  # what names of such models begin with
PATTERNS = [CONFIG, WEIGHTS, README, f"fold_*/{CONFIG}", f"fold_*/{WEIGHTS}"]  # nothing else is downloaded


def download(name: str) -> Path:
    """Returns the folder of "hf-hub:OWNER/NAME" or "hf-hub:OWNER/NAME@REVISION"; what was downloaded before is kept.

    DataError where there is no such repository, it is not ours to read, or the network is away and nothing was kept.
    """
    from huggingface_hub import errors, snapshot_download

    repository, _, revision = name.removeprefix(HUB).partition("@")
    known: dict[type[Exception], str] = {
        errors.GatedRepoError: "its owner gives access on request. Ask on its page, then: hf auth login",
        errors.RepositoryNotFoundError: "there is no such repository, or it is private. For a private one: hf auth login",
        errors.RevisionNotFoundError: f"it has no revision {revision!r}. Leave out @{revision} for the newest",
        errors.HFValidationError: "not the name of a repository. Write hf-hub:OWNER/NAME or hf-hub:OWNER/NAME@REVISION",
        errors.LocalEntryNotFoundError: "cannot be reached, and was not downloaded before. Check network and HF_ENDPOINT",
    }
    try:
        return Path(
            snapshot_download(
                repository, revision=revision or None, allow_patterns=PATTERNS, library_name="ipiqa",
                library_version=__version__,
            )
        )  # fmt: skip
    except Exception as error:  # the hub's client has many of its own for a network that does not answer
        problem = next((text for kind, text in known.items() if isinstance(error, kind)), one_line(error))
        raise DataError(f"ipiqa.load: '{printable(name)}': {problem}.") from None
