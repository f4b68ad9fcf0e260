"""What the trackers of a run are given, and where the manifest keeps their runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sftkit.data.counts import without_notes
from sftkit.ranks import is_main_process
from sftkit.training import trackers

if TYPE_CHECKING:
    from sftkit.run.directory import EarlierRun
    from sftkit.run.stages import PreparedRun


def begin_trackers(prepared: PreparedRun, manifest: dict[str, Any], earlier: EarlierRun | None) -> trackers.Trackers:
    """Begin, or continue, the trackers of ``train.report_to``; the ids of their runs go into the manifest.

    Args:
        prepared: the run, with its data.
        manifest: of the run; what it says of configuration, data and versions is reported.
        earlier: the run that it continues.

    Raises:
        RunError: if a tracker cannot be used.
    """
    facts = {key: manifest["config"][key] for key in ("model", "data", "evaluate", "run", "plugins")}
    facts["rows"] = {split: without_notes(counts) for split, counts in manifest["data"].items()}
    facts |= {key: manifest[key] for key in ("versions", "seeds", "git_commit")}
    facts["plugin_versions"] = {name: each["version"] for name, each in manifest["plugins"].items()}
    runs, step = ({}, 0) if earlier is None else (earlier.manifest.get("trackers", {}), earlier.step)
    has_eval = bool(prepared.data.eval)
    begun = trackers.begin_trackers(prepared.config, facts, has_eval, is_main_process(), runs, step)
    manifest["trackers"], manifest["writes"] = begun.runs, sorted({*manifest["writes"], *begun.writes})
    return begun
