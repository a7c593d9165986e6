"""A run's result, or any adapter, as a repository on a hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from ..errors import SubspaceError, described, reading
from ..jobs.fields import read_object
from ..models.locate import PACKAGED
from .saved import TASK, result_of

_CONFIGS = ("adapter_config.json", "config.json")
_BASES = {"adapter_config.json": "base_model_name_or_path", TASK: "model"}
_CARD = "README.md"
_PUSHED = (".safetensors", ".json", ".md", ".txt", ".model", ".jinja")
"""The endings of what is pushed: weights as tensors, and text. Nothing that is pickled."""


def push(path: str | Path, repository: str, base: str | None = None, *, private: bool = False) -> str:
    """Push a run's result to a hub, in one commit, and return the commit's address.

    The hub is huggingface_hub's, with its token (``hf auth login`` or ``HF_TOKEN``) and its address (``HF_ENDPOINT``).

    Args:
        path: the run's folder, or the folder of an adapter or a model by itself.
        repository: ``owner/name``; made if it is not there.
        base: the base model's name on the hub, if the run's was a local folder.
        private: whether a repository that is made is private.

    Raises:
        SubspaceError: there is nothing to push, the base model has no name on the hub, there is no token, or the hub
            refuses.
    """
    folder = _folder(Path(path).expanduser())
    files = _files(folder, base)
    if get_token() is None:
        raise SubspaceError("the hub needs a token: call `hf auth login`, or set HF_TOKEN")
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    try:
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        made = api.create_commit(repository, operations, commit_message=f"Add {folder.name}")
    except HFValidationError as error:
        raise SubspaceError(f"repository {repository!r} is not of the form owner/name: {described(error)}") from None
    except (HfHubHTTPError, OSError) as error:
        raise SubspaceError(f"cannot push to {repository!r}: {described(error)}") from error
    return made.commit_url


def _folder(path: Path) -> Path:
    if any((path / name).is_file() for name in _CONFIGS):
        return path
    return result_of(path)


def _files(folder: Path, base: str | None) -> dict[str, Path | bytes]:
    """Return the files to push by name, with the base model's name in place of a local folder."""
    files: dict[str, Path | bytes] = {
        file.name: file for file in sorted(folder.iterdir()) if file.is_file() and file.suffix in _PUSHED
    }
    for name, key in _BASES.items():
        if name in files:
            content = read_object(folder / name, "save it again", {})
            assert content is not None
            content[key] = _named(content.get(key), base, folder)
            files[name] = (json.dumps(content, indent=2) + "\n").encode()
    if _CARD in files:
        with reading(f"the model card in {folder}"):
            card = ModelCard.load(folder / _CARD)
        card.data["base_model"] = _named(card.data.get("base_model"), base, folder)
        files[_CARD] = str(card).encode()
    return files


def _named(known: Any, base: str | None, folder: Path) -> str | None:
    if base is not None:
        return base
    if known is not None and (known == PACKAGED or Path(known).expanduser().is_absolute() or Path(known).is_dir()):
        raise SubspaceError(f"the base model in {folder} is {str(known)!r}, which no other machine has: give --base")
    return None if known is None else str(known)
