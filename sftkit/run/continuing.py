"""The run that a run continues: whether it may, and what it says."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sftkit.errors import RunError
from sftkit.models.choices import Choices
from sftkit.ranks import is_main_process, world_size
from sftkit.run.changes import schedule_note, unknown_names, version_changes
from sftkit.run.manifest import DONE, new_manifest
from sftkit.run.shares import share_note

if TYPE_CHECKING:
    from sftkit.run.directory import EarlierRun, Resume, RunDirectory
    from sftkit.run.processes import Processes
    from sftkit.run.stages import Stages

logger = logging.getLogger("sftkit")


def earlier_run(
    directory: RunDirectory,
    stages: Stages,
    resume: Resume,
    allowed: Iterable[str],
    contents: bool,
) -> tuple[EarlierRun | None, dict[str, Any]]:
    """The run to resume, if there is one, and the manifest of this one, without its data and weights.

    Args:
        directory: that of the run.
        stages: those of the run.
        resume: as of `Pipeline`.
        allowed: the changes that are allowed.
        contents: verify every byte of the checkpoint that it continues from.

    Raises:
        RunError: if the configuration has changed, or there is nothing to continue from.
    """
    earlier, manifest = directory.earlier(resume, contents), new_manifest(stages.config, stages.plugins, stages.engine)
    if earlier is not None and is_main_process():
        names = {*earlier.manifest["plugins"], *manifest["plugins"]}
        if problems := list(unknown_names(allowed, names)):
            raise RunError(problems)
        require_unchanged(earlier, manifest, allowed)
        done = earlier.manifest["status"] == DONE
        if done and earlier.checkpoint is None and not earlier.finished(manifest):
            raise directory.no_checkpoint(earlier)
    return earlier, manifest


def require_unchanged(earlier: EarlierRun | None, manifest: dict[str, Any], allowed: Iterable[str]) -> None:
    """Raises:
    RunError: with every change since the earlier run that is not allowed.
    """
    if earlier is None or not is_main_process():
        return
    if problems := earlier.refusals(manifest, allowed):
        raise RunError(problems)


def earlier_choices(earlier: EarlierRun | None, processes: Processes) -> Choices:
    """What plugins have chosen from the weights of the model, if a run is resumed."""
    made = earlier.manifest.get("choices") if earlier is not None else None
    return Choices(made, processes.from_main, is_main_process())


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
