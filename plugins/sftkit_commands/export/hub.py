"""Uploading an exported directory to the Hugging Face hub."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sftkit.api import ConfigError, Problem, RunError

WHERE = "--push-to-hub"


def check_hub(name: str) -> None:
    """Check what can be known before anything is uploaded.

    Raises:
        ConfigError: if the name is not one of the hub, the hub is switched off, or there is no token.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        fix = "use a name such as owner/name"
        raise ConfigError(Problem(" ".join(str(error).split()), WHERE, fix)) from error
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(Problem("the hub is switched off by HF_HUB_OFFLINE", WHERE, "unset that variable"))
    if get_token() is None:
        fix = "run `hf auth login`, or set HF_TOKEN to a token that may write"
        raise ConfigError(Problem("there is no token for the hub", WHERE, fix))


def push(directory: Path, name: str, private: bool) -> str:
    """Upload a directory; returns its address on the hub.

    Args:
        directory: with the files to upload.
        name: of the repository, which is made if it does not exist.
        private: whether a repository that is made is private.

    Raises:
        RunError: if the hub refuses it or cannot be reached. The directory is kept as it is.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="sftkit")
    with _hub_errors(directory, name):
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=address.repo_id, folder_path=directory, commit_message="Upload by sftkit export")
    return str(address)


@contextmanager
def _hub_errors(directory: Path, name: str) -> Iterator[None]:
    """Raises:
    RunError: for what the hub answers, or if it cannot be reached.
    """
    from huggingface_hub.errors import HfHubHTTPError

    unreachable: Any = HfHubHTTPError.__bases__  # of the HTTP library that the hub's client uses, whichever it is
    kept = f"; the export in {str(directory)!r} is complete"
    again = f"fix this, and upload the directory with `hf upload {name} {shlex.quote(str(directory))}`"
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        what = f"the hub refuses the upload ({status}): {_first_line(error)}"
        fixes = {401: "log in with a valid token: `hf auth login`", 403: "use a token that may write there"}
        raise RunError(Problem(what + kept, WHERE, f"{fixes.get(status, 'see its answer')}; {again}")) from error
    except unreachable as error:
        what = f"the hub cannot be reached: {_first_line(error)}"
        raise RunError(Problem(what + kept, WHERE, again)) from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (getattr(error, "server_message", None) or (lines[0] if lines else type(error).__name__)).rstrip(".")
