"""Saved models on the Hugging Face Hub."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from torch import nn

from udmlss._checks import import_optional, value_error
from udmlss.backbones import Backbone
from udmlss.models.model_folder import CONFIG, WEIGHTS
from udmlss.models.saved_model import save_model

_CARD = """---
library_name: udmlss
pipeline_tag: image-feature-extraction
---

# {repository}

An embedding model for image retrieval, trained without labels by udmlss.

```python
from huggingface_hub import snapshot_download
from udmlss.models import load_model

model, backbone = load_model(snapshot_download("{repository}"))
```
"""


def local_folder(name_or_folder: str | os.PathLike[str], revision: str | None) -> Path:
    """Return an existing folder as it is, or else download the repository of this name.

    Raises:
        ValueError: There is no such folder or repository.
        ImportError: huggingface_hub is not installed.
        ConnectionError: The repository cannot be downloaded.
    """
    folder = Path(name_or_folder).expanduser()
    if folder.exists() or not isinstance(name_or_folder, str) or not _is_repository_name(name_or_folder):
        return folder
    with _translated_errors(name_or_folder) as hub:
        return Path(hub.snapshot_download(name_or_folder, revision=revision, allow_patterns=[CONFIG, WEIGHTS]))


def upload_model(
    model: nn.Module,
    repository: str,
    *,
    backbone: Backbone | None,
    recipe: Mapping[str, Any] | None,
    private: bool | None,
) -> str:
    """Save a model in a repository; `EmbeddingModel.push_to_hub` documents arguments and errors."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        save_model(model, folder, backbone=backbone, recipe=recipe)
        with _translated_errors(repository) as hub:
            address = hub.create_repo(repository, private=private, exist_ok=True)
            if not hub.file_exists(address.repo_id, "README.md"):  # a model card of the user is not replaced
                (folder / "README.md").write_text(_CARD.format(repository=repository), encoding="utf-8")
            hub.upload_folder(repo_id=address.repo_id, folder_path=folder)
            return str(address)


def _is_repository_name(name: str) -> bool:
    owner, slash, repository = name.partition("/")
    return bool(slash and owner.strip("~.") and repository and "/" not in repository)


@contextmanager
def _translated_errors(repository: str) -> Iterator[ModuleType]:
    """Yield huggingface_hub, and replace its errors by those of the standard library that name the repository."""
    hub = import_optional("huggingface_hub", "The Hugging Face Hub", '"udmlss[hub]"')
    errors = hub.errors
    unreachable: tuple[type[Exception], ...] = (OSError, *errors.HfHubHTTPError.__bases__)  # of its HTTP library
    try:
        yield hub
    except errors.HFValidationError as error:
        raise value_error("A repository must be named owner/name", f"{repository!r} ({error})", "Rename it") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        rule = "The model must be an existing folder or a repository of the Hugging Face Hub that you may read"
        remedy = "Check the name, or log in with `hf auth login`"
        raise value_error(rule, f"{repository!r} ({error})", remedy) from error
    except unreachable as error:
        message = (
            f"The transfer of {repository!r} from or to the Hugging Face Hub failed: {error}. Connect to the network, "
            "and log in with `hf auth login` to upload. To load a saved model, pass an existing folder."
        )
        raise ConnectionError(message) from error
