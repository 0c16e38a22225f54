"""Files to a repository on the Hugging Face hub."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def upload(
    directory: str | os.PathLike[str],
    repo_id: str,
    names: Iterable[str],
    *,
    tags: Iterable[str] = (),
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> Any:
    """Upload files of a directory in one commit; the repository is made where it does not exist.

    Args:
        directory: where the files are.
        repo_id: "namespace/name", or "name" in the namespace of the token.
        names: of the files.
        tags: added to those of the model card, README.md, which is made where there is none.
        commit_message, commit_description: default: "Upload model".
        private: of a repository that is made.
        token: access token; default: the one huggingface_hub knows.
        revision: the branch; made where it does not exist.
        create_pr: whether to open a pull request with the commit.

    Returns:
        huggingface_hub's CommitInfo.
    """
    from huggingface_hub import HfApi  # here, as in hub.py: it takes longer than the rest of the package

    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not revision.startswith("refs/pr"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    names = [*names]
    if tags:
        _write_card(Path(directory) / "README.md", repo_id, tags, api)
        names.append("README.md")
    return api.upload_folder(
        repo_id=repo_id,
        folder_path=Path(directory),
        allow_patterns=names,
        commit_message=commit_message or "Upload model",
        commit_description=commit_description,
        revision=revision,
        create_pr=create_pr,
    )


def _write_card(path: Path, repo_id: str, tags: Iterable[str], api: Any) -> None:
    """The repository's card with further tags."""
    from huggingface_hub import ModelCard
    from huggingface_hub.utils import EntryNotFoundError

    try:
        card = ModelCard.load(Path(api.hf_hub_download(repo_id, "README.md")))
    except EntryNotFoundError:
        card = ModelCard(f"---\nlibrary_name: vilt_fast\n---\n\n# {repo_id.split('/')[-1]}\n")
    card.data.tags = [*dict.fromkeys([*(card.data.tags or []), *tags])]
    card.save(path)
