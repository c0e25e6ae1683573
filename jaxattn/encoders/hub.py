"""Local folders of models, downloaded from the Hugging Face hub where needed."""

from collections.abc import Sequence
from pathlib import Path

from jaxattn.encoders.extra import optional

# Weights in other forms (pickles, other frameworks, other precisions) are not even downloaded.
FILES = (
    "config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


def find_folder(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    cache_dir: str | Path | None = None,
    files: Sequence[str] = FILES,
) -> Path:
    """The folder itself, or that of a repository of the Hugging Face hub, downloaded into its cache.

    Args:
        name_or_path: a folder, or the name of a repository, such as "google-bert/bert-base-uncased".
        revision: branch, tag or commit of the repository; None for its main branch.
        local_files_only: use the cache alone.
        cache_dir: the cache's folder; None for the usual one.
        files: names or patterns of the files to download.

    Returns:
        The folder.

    Raises:
        ValueError: neither a folder nor the name of a repository that can be read, or a revision of a folder.
        FileNotFoundError: not in the cache, and there is no connection or none is wanted.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(
                f"revision is for names of repositories, and {folder} is a folder; got {revision!r}."
            )
        return folder
    name = str(name_or_path)
    if folder.exists() or folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ValueError(
            f"name_or_path must be a folder or the name of a repository; there is no folder {name}."
        )
    hub, errors = optional("huggingface_hub"), optional("huggingface_hub.errors")
    try:
        return Path(
            hub.snapshot_download(
                name,
                revision=revision,
                local_files_only=local_files_only,
                cache_dir=cache_dir,
                allow_patterns=list(files),
            )
        )
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise ValueError(
            f"name_or_path {name!r} (revision {revision or 'main'}) is neither a folder nor a repository that can be "
            f"read: {error}"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as error:
        raise FileNotFoundError(
            f"{name!r} is not in the cache of the Hugging Face hub and could not be downloaded. Run once with a "
            "connection (without local_files_only and HF_HUB_OFFLINE), or give the path of a folder that holds "
            "config.json, model.safetensors and tokenizer.json."
        ) from error
