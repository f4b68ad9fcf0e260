"""What a run says when it continues from an earlier one."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from sftkit.run.changes import schedule_note, version_changes
from sftkit.run.distributed import is_main_process, world_size
from sftkit.run.shares import share_note

if TYPE_CHECKING:
    from sftkit.run.directory import EarlierRun

logger = logging.getLogger("sftkit")


def announce(earlier: EarlierRun | None, manifest: dict[str, Any]) -> dict[str, str]:
    """Say what the run continues from and what has changed; returns the changes in words, by name."""
    if earlier is None or not is_main_process():
        return {}
    for path, why in earlier.choice.rejected:
        logger.warning("%s is not used: %s", path, why)
    if earlier.checkpoint is None:
        logger.info("the run had saved nothing yet: it starts again from the beginning")
    else:
        logger.info("resuming from %s", earlier.checkpoint)
    changes = {change.name: change.what for change in earlier.changes(manifest)}
    for name, what in changes.items():
        logger.warning("%s has changed since the run began, which is allowed: %s", name, what)
    if note := schedule_note(earlier.manifest, manifest):
        logger.warning(note)
    if earlier.checkpoint is not None and (note := share_note(earlier.manifest, manifest, world_size())):
        logger.warning(note)
    if note := version_changes(earlier.manifest, manifest):
        logger.warning("other versions than before: %s", note)
    return changes
