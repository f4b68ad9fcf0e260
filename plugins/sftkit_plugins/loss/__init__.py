"""Other losses per token than the negative log-likelihood, and further measures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from sftkit.api import Field, Plugin, Problem, dataclass, hookimpl

if TYPE_CHECKING:
    from sftkit.api import HeadLoss, RunConfig


@dataclass(frozen=True, kw_only=True)
class Loss(Plugin):
    """Chooses the loss of a token: nll, dft (Wu et al., 2025), label smoothing; measures entropy if asked.

    Without this plugin a run minimises the negative log-likelihood, which is also what its defaults do.
    """

    replaces: ClassVar[Mapping[str, str]] = {"label_smoothing_factor": "label_smoothing"}

    type: Annotated[
        Literal["nll", "dft"],
        Field(
            description="nll: negative log-likelihood; dft: the same times the probability of the token, which is"
            " held constant"
        ),
    ] = "nll"
    label_smoothing: Annotated[
        float, Field(ge=0, lt=1, description="share of the target probability that is spread over the whole vocabulary")
    ] = 0.0
    entropy: Annotated[
        bool, Field(description="log the mean entropy of the predictions of trained tokens, in nats")
    ] = False

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """Refuse smoothed targets together with dft."""
        if self.type == "dft" and self.label_smoothing:
            what = "dft weights a token by the probability of its single target, which smoothed targets do not have"
            key = ("plugins", "loss", "label_smoothing")
            yield Problem(what, "plugin loss, option label_smoothing", "leave it at 0, or set type: nll", key)

    @hookimpl
    def make_loss(self) -> HeadLoss:
        """The loss of trained tokens."""
        from sftkit_plugins.loss.tokens import ChosenLoss

        return ChosenLoss(self.type == "dft", self.label_smoothing, self.entropy)
