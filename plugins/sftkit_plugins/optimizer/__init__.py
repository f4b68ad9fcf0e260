"""Groups of weights with their own learning rate and weight decay."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from sftkit.api import OWN_GROUPS, Field, Plugin, Problem, dataclass, hookimpl, is_adapter, train_value

if TYPE_CHECKING:
    from torch.optim import Optimizer as TorchOptimizer

    from sftkit.api import PluginSet, RunConfig

WHERE = "plugin optimizer"
Setting = Literal["learning_rate", "factor", "weight_decay"]


@dataclass(frozen=True, kw_only=True)
class Optimizer(Plugin):
    """Gives groups of weights their own learning rate and weight decay: by name, by layer, or by LoRA+.

    The optimizer itself is that of ``train.optim``.

    Sources: Howard and Ruder, 2018 (arXiv 1801.06146), section 3.2, and Clark et al., 2020 (arXiv 2003.10555) for rates
    by layer; Hayou et al., 2024 (arXiv 2402.12354) for LoRA+.
    """

    groups: Annotated[
        dict[str, dict[Setting, Annotated[float, Field(ge=0, allow_inf_nan=False)]]],
        Field(
            description="regular expressions of names of weights, each with `learning_rate` or `factor` (of "
            "train.learning_rate), and `weight_decay`; the first that is found in a name counts"
        ),
    ] = field(default_factory=dict)
    layer_decay: Annotated[
        float | None,
        Field(gt=0, lt=1, description="factor of the learning rate from each layer to the one below it, such as 0.9"),
    ] = None
    lora_plus: Annotated[
        float | None,
        Field(ge=1, allow_inf_nan=False, description="factor of the learning rate of LoRA's matrices B, such as 16"),
    ] = None

    @hookimpl
    def check_run(self, config: RunConfig, plugins: PluginSet) -> Iterator[Problem]:
        """Patterns that are none, settings that exclude each other, and options that would do nothing."""
        where = f"{WHERE}, option groups"
        for pattern, settings in self.groups.items():
            key = ("plugins", "optimizer", "groups", pattern)
            try:
                re.compile(pattern)
            except re.error as error:
                yield Problem(f"{pattern!r} is not a regular expression: {error}", where, "correct it", key)
            if not settings:
                fix = "give it learning_rate, factor or weight_decay"
                yield Problem(f"{pattern!r} changes nothing", where, fix, key)
            elif {"learning_rate", "factor"} <= {*settings}:
                yield Problem(f"{pattern!r} has both learning_rate and factor", where, "remove one of them", key)
            elif 0 in (settings.get("learning_rate"), settings.get("factor")):
                yield Problem(f"{pattern!r} would not be trained", where, "give it a rate above 0", key)
        adapted = plugins.fillers("adapt_model") or is_adapter(config.model.name) or config.model.loaded
        if self.lora_plus is not None and not adapted:
            fix = "select a plugin that adds an adapter, as with -p peft, or remove it"
            yield Problem("LoRA+ needs an adapter", f"{WHERE}, option lora_plus", fix)
        if (name := str(train_value(config, "optim"))).startswith(OWN_GROUPS):
            fix = "choose another train.optim, such as adamw_torch, or drop plugin optimizer"
            yield Problem(f"{name} makes its groups of weights itself", "train.optim", fix, ("train", "optim"))

    @hookimpl
    def make_optimizer(self, model: Any, config: RunConfig) -> TorchOptimizer:
        """The optimizer of ``train.optim`` with the groups.

        Raises:
            ConfigError: if a pattern matches no trained weight, or the model has no layers or no LoRA to scale.
        """
        from sftkit.api import configured_optimizer
        from sftkit_plugins.optimizer.assign import groups_of

        rate, decay = (float(train_value(config, name)) for name in ("learning_rate", "weight_decay"))
        made = groups_of(model, rate, decay, self.groups, self.layer_decay, self.lora_plus)
        return configured_optimizer(model, config, made)
