"""Kernels are patched, and the model computes with the same weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sftkit.errors import Problem, RunError
from sftkit.run.guards.weights import Weights

if TYPE_CHECKING:
    from sftkit.config import RunConfig
    from sftkit.plugin.selected import PluginSet

FIX = "replace forwards only, and change weights in load_model or adapt_model"


def patch_kernels(model: Any, config: RunConfig, plugins: PluginSet) -> None:
    """Let each plugin replace forwards, and compare the weights before and after it. Changes the model.

    Raises:
        RunError: if a plugin changes a weight, its dtype, a tie, whether it is trained, or the mode of a module.
    """
    calls = plugins.one_by_one("patch_kernels")
    before = Weights.of(model) if calls else None
    for name, call in calls:
        modes = {module: module.training for module in model.modules()}
        call(model=model, config=config)
        after = Weights.of(model)
        assert before is not None
        changes = before.changes(after)
        # a module that replaces another is new, and in training mode
        if any(modes.get(module, module.training) != module.training for module in model.modules()):
            changes.append(f"leaves the model in {'training' if model.training else 'eval'} mode")
        if changes:
            raise RunError(Problem("; ".join(changes), f"plugin {name}, hook patch_kernels", FIX))
        before = after
