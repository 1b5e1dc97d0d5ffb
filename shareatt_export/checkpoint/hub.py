"""Models on the Hugging Face hub, by huggingface_hub: fetched into its cache, which other tools share."""

import re
from pathlib import Path

from ..errors import BadInput, RuntimeProblem

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
# weights only as safetensors: pickles can run code
PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "README.md"]


def repository(model: str) -> str | None:
    """The id of a model on the hub, if `model` looks like one."""
    return model if _ID.fullmatch(model) and not model.endswith(".gguf") else None


def fetch(repo: str, revision: str | None, with_code: bool) -> Path:
    """The folder of a checkpoint; files that are in the cache already are not fetched again.

    HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE mean what they mean everywhere. Raises BadInput, RuntimeProblem.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise RuntimeProblem(
            f"{repo}: no such file or folder; to fetch it from the hub, pip install 'shareatt-export[hf]'"
        ) from None
    try:
        patterns = [*PATTERNS, *(["*.py"] if with_code else [])]
        folder = Path(huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except errors.GatedRepoError:
        raise BadInput(f"{repo}: gated on the hub; ask for access on its page, then 'hf auth login'") from None
    except errors.RevisionNotFoundError:  # never without a revision
        raise BadInput(f"{repo}: --revision: '{revision}' is not on the hub") from None
    except errors.RepositoryNotFoundError:
        raise BadInput(f"{repo}: no such folder here or model on the hub; if it is private, 'hf auth login'") from None
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(f"{repo}: no such folder here, and the hub did not give it: {reason}") from None
    if not (folder / "config.json").is_file():
        raise BadInput(f"{repo}: no config.json; for a GGUF of it, 'hf download {repo} FILE.gguf' and name the file")
    return folder
