"""The one place that uploads: files to a hub repository, and back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import DownloadError, EncbenchError, first_line
from .hub import download_error, download_snapshot


def upload_files(
    repo: str, kind: str, files: Mapping[str, Path], *, under: str, private: bool, replace: bool
) -> str:
    """Commit files to a repository, which is made if it is not there; the commit's address.

    Args:
        kind: 'dataset' or 'model'.
        files: by their names in the repository.
        under: folder that belongs to these files alone; '' = the whole repository.
        private: whether a repository that is made is private.
        replace: whether to overwrite what is in that folder.

    Raises:
        DownloadError: if the hub cannot be reached or refuses, or the folder is in use.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    try:
        api.create_repo(repo, repo_type=kind, private=private, exist_ok=True)
        listed = api.list_repo_files(repo, repo_type=kind)
        there = [n for n in listed if n.startswith(under) and n != ".gitattributes"]
        if there and not replace:
            raise DownloadError(
                f"{repo} already holds {there[0]}: take another --name, or --replace to overwrite"
            )
        adds = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
        gone = [CommitOperationDelete(name) for name in there if name not in files]
        message = f"Upload {under.rstrip('/') or 'model'} with encbench"
        done = api.create_commit(repo, [*adds, *gone], commit_message=message, repo_type=kind)
        return str(done.commit_url)
    except EncbenchError:
        raise
    except Exception as error:  # the hub's client raises a dozen kinds, its http client more
        raise _refused(error, repo) from error


def _refused(error: Exception, repo: str) -> EncbenchError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return DownloadError(
            f"the hub does not let you write to {repo} ({status}): set HF_TOKEN to a token with "
            "write access, or run `hf auth login`"
        )
    if status is not None:
        return DownloadError(f"the hub refused to store {repo} ({status}: {first_line(error)})")
    return download_error(error, repo, None)


def download_files(repo: str, revision: str | None, kind: str, patterns: Sequence[str]) -> Path:
    """The folder in the hub's cache that holds the files of a repository that match.

    Raises:
        DownloadError: if the hub cannot be reached or refuses.
    """
    return download_snapshot(repo, revision, patterns, (), kind=kind)
