"""How a run ended, in its manifest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sftkit.errors import Interrupted
from sftkit.run.directory import RunDirectory
from sftkit.run.distributed import blamed

INTERRUPTED = "interrupted"  # the status of a run that a signal or its deadline ended
FAILED = "failed"  # that of a run that an error ended


@contextmanager
def recorded(directory: RunDirectory, manifest: dict[str, Any]) -> Iterator[None]:
    """Write the status and the reason into the manifest if the run ends early inside the context.

    Args:
        directory: the run directory, which has begun.
        manifest: that of the run.

    Raises:
        TrainingError: if another process failed or hangs, in place of this process's error.
    """
    try:
        yield
    except Interrupted as error:
        directory.write({**manifest, "status": INTERRUPTED, "error": str(error)})
        error.directory = directory.path
        raise
    except KeyboardInterrupt:
        directory.write({**manifest, "status": INTERRUPTED, "error": "KeyboardInterrupt"})
        raise
    except Exception as error:
        other = blamed(error)
        reason = f"{type(error).__name__}: {error}" if other is None else str(other)
        directory.write({**manifest, "status": FAILED, "error": reason})
        if other is None:
            raise
        raise other from error
