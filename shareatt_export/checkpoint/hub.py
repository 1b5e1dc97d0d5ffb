"""Fetch models from the Hugging Face hub with huggingface_hub, into the cache that it shares with other tools."""

import re
from pathlib import Path

from ..errors import BadInput, RuntimeProblem

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
# safetensors is the only format of weights here, because pickles can run code
PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "README.md"]


def repository(model: str) -> str | None:
    """Return `model` if it looks like the id of a model on the hub, else None."""
    return model if _ID.fullmatch(model) and not model.endswith(".gguf") else None


def fetch(repository: str, revision: str | None, with_code: bool) -> Path:
    """Fetch a checkpoint and return its folder; files in the cache are not fetched again.

    `with_code` also fetches *.py. huggingface_hub reads HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE. Raises
    BadInput if the model cannot be fetched, RuntimeProblem without huggingface_hub.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        next_step = "to fetch it from the hub, pip install 'shareatt-export[hf]'"
        raise RuntimeProblem("no such file or folder", path=repository, next_step=next_step) from None
    try:
        patterns = [*PATTERNS, *(["*.py"] if with_code else [])]
        folder = Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except errors.GatedRepoError:
        next_step = "ask for access on its page, then 'hf auth login'"
        raise BadInput("gated on the hub", path=repository, next_step=next_step) from None
    except errors.RevisionNotFoundError:  # raised only if a revision was given
        raise BadInput(f"'{revision}' is not on the hub", path=repository, field="--revision") from None
    except errors.RepositoryNotFoundError:
        reason, next_step = "no such folder here or model on the hub", "if it is private, 'hf auth login'"
        raise BadInput(reason, path=repository, next_step=next_step) from None
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(
            f"no such folder here, and it cannot be fetched from the hub: {reason}", path=repository
        ) from None
    if not (folder / "config.json").is_file():
        next_step = f"for a GGUF of it, 'hf download {repository} FILE.gguf' and name the file"
        raise BadInput("no config.json", path=repository, next_step=next_step)
    return folder
