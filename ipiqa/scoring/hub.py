"""Models that somebody shares on the Hugging Face Hub, or on a server of its kind (HF_ENDPOINT)."""

from pathlib import Path

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
    no_access = "no such repository, or none you have access to. For access: hf auth login"
    known: dict[type[Exception], str] = {
        errors.RepositoryNotFoundError: no_access,
        errors.RevisionNotFoundError: f"it has no revision {revision!r}. Leave out @{revision} for the newest",
        errors.HFValidationError: "no name of a repository. Write hf-hub:OWNER/NAME or hf-hub:OWNER/NAME@REVISION",
        errors.LocalEntryNotFoundError: "not reached, nor downloaded before. Check the network and HF_ENDPOINT",
    }
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=PATTERNS))
    except Exception as error:  # the hub's client has many of its own for a network that does not answer
        is_closed = getattr(getattr(error, "response", None), "status_code", None) in (401, 403)
        problem = next((text for kind, text in known.items() if isinstance(error, kind)), one_line(error))
        raise DataError(f"ipiqa.load: '{printable(name)}': {no_access if is_closed else problem}.") from None
