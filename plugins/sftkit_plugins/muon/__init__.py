"""Muon for the matrices of the layers, AdamW for everything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from sftkit.api import ConfigError, Field, Plugin, Problem, dataclass, hookimpl, train_value

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from sftkit.api import RunConfig

WHERE = "plugin muon"


@dataclass(frozen=True, kw_only=True)
class Muon(Plugin):
    """Updates the matrices of the layers by Muon, and embeddings, head, norms and biases by AdamW.

    Sources: Jordan et al., 2024, Muon: An optimizer for hidden layers in neural networks
    (kellerjordan.github.io/posts/muon); Liu et al., 2025, Muon is Scalable for LLM Training (arXiv 2502.16982).
    """

    replaces: ClassVar[Mapping[str, str]] = {"optim": "", "optim_args": "", "optim_target_modules": ""}
    conflicts: ClassVar[tuple[str, ...]] = ("deepspeed", "fsdp", "tensor_parallel")  # it needs whole matrices

    learning_rate: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False, description="of the matrices; by default train.learning_rate, as for AdamW"),
    ] = None
    weight_decay: Annotated[
        float | None,
        Field(ge=0, allow_inf_nan=False, description="of the matrices; by default train.weight_decay, as for AdamW"),
    ] = None
    momentum: Annotated[float, Field(ge=0, lt=1, description="of the gradients of the matrices")] = 0.95
    nesterov: Annotated[bool, Field(description="whether the update looks a step ahead, by Nesterov's momentum")] = True
    scale: Annotated[
        Literal["match_rms_adamw", "original"],
        Field(
            description="of the updates. match_rms_adamw: as large as those of AdamW, so that its learning rates fit; "
            "original: as in the first paper, for rates of about 0.02"
        ),
    ] = "match_rms_adamw"
    steps: Annotated[int, Field(ge=1, lt=100, description="iterations that make an update orthogonal")] = 5

    @hookimpl
    def make_optimizer(self, model: Any, config: RunConfig) -> Optimizer:
        """One optimizer of torch's Muon and AdamW.

        Raises:
            ConfigError: if no matrix of a layer is trained.
        """
        from sftkit.api import configured_optimizer, decayed_names
        from sftkit_plugins.muon.both import MuonAndAdamW
        from sftkit_plugins.muon.matrices import matrix_names

        matrices, decayed = matrix_names(model), decayed_names(model)
        if not matrices:
            what = "no matrix of a layer is trained"
            raise ConfigError(Problem(what, WHERE, "drop the plugin, or train the layers"))
        rate, decay = (float(train_value(config, name)) for name in ("learning_rate", "weight_decay"))
        own: dict[str, list[Tensor]] = {"muon": [], "decayed": [], "others": []}
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                own["muon" if name in matrices else "decayed" if name in decayed else "others"].append(weight)
        rest = [
            {"params": own[kind], "weight_decay": factor * decay, "name": "adamw"}
            for kind, factor in (("decayed", 1), ("others", 0))
            if own[kind]
        ]
        options = {
            "lr": rate if self.learning_rate is None else self.learning_rate,
            "weight_decay": decay if self.weight_decay is None else self.weight_decay,
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "adjust_lr_fn": self.scale,
            "ns_steps": self.steps,
        }
        adamw = configured_optimizer(model, config, rest) if rest else None
        return MuonAndAdamW(own["muon"], options, adamw)
