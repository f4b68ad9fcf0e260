"""Knowledge distillation: the student learns the distributions of a teacher, not only the tokens of the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from sftkit.api import ConfigError, Field, Plugin, Problem, Verdict, dataclass, hookimpl

if TYPE_CHECKING:
    from sftkit.api import HeadLoss, PreparedRun, RunConfig

TEACHER, ROWS = "plugin distill, option teacher", "plugin distill, option rows"
#: Plugins that do not go with a teacher that runs in training, and why.
UNSUITED_ONLINE = {
    "vision": "the teacher gets tokens alone, without images",
    "unsloth": "unsloth replaces forwards of transformers, which the teacher would run too",
}
#: Plugins that do not go with stored rows, and why.
UNSUITED_STORED = {
    "vision": "documents are found by their tokens, and two images may have the same ones",
    "completion_only": "it trains fewer tokens than the prepared rows, for which values are stored",
}


@dataclass(frozen=True, kw_only=True)
class Distill(Plugin):
    """Trains on the distributions of a teacher: of one that runs in training, or its stored top tokens.

    Sources: Hinton et al., 2015, Distilling the Knowledge in a Neural Network (arXiv 1503.02531); Agarwal et al., 2024,
    On-Policy Distillation of Language Models (arXiv 2306.13649), for the generalized Jensen-Shannon divergence.
    """

    paths: ClassVar[tuple[str, ...]] = ("teacher", "rows")

    teacher: Annotated[
        str, Field(description="a model that runs on each batch: a run, a directory with a model, or a hub name")
    ] = ""
    rows: Annotated[str, Field(description="in place of it, a directory that `sftkit distill-rows` wrote")] = ""
    kl: Annotated[
        Literal["forward", "reverse", "jsd"],
        Field(
            description="forward: KL(teacher, student), which covers all that the teacher does; reverse: "
            "KL(student, teacher), which keeps to what it does most; jsd: between them"
        ),
    ] = "forward"
    beta: Annotated[float, Field(gt=0, lt=1, description="jsd: the teacher's share of the mixture")] = 0.5
    temperature: Annotated[
        float, Field(gt=0, description="divides the logits of both; the divergence is multiplied by its square")
    ] = 1.0
    alpha: Annotated[
        float, Field(gt=0, le=1, description="share of the divergence in the loss; the rest is cross-entropy")
    ] = 0.5
    dtype: Annotated[
        str, Field(description="type of the teacher's weights, such as bfloat16; by default as they are saved")
    ] = ""
    device: Annotated[str, Field(description="where the teacher runs, such as cuda:1; by default with the student")] = (
        ""
    )
    loaders: Annotated[
        list[str],
        Field(description="plugins that load the teacher, as for --plugin, such as `bitsandbytes:bits=4`"),
    ] = dataclasses.field(default_factory=list)

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """A teacher and stored rows at once or neither, and what they cannot be used with."""
        if bool(self.teacher) == bool(self.rows):
            what = "a teacher and stored rows" if self.teacher else "neither a teacher nor stored rows"
            yield Problem(f"{what} are named", "plugin distill", "set one of the options teacher and rows")
        for name, why in (UNSUITED_ONLINE if self.teacher else UNSUITED_STORED).items():
            if name in config.plugins:
                yield Problem(why, f"plugin {name}", f"drop plugin {name} or distill", ("plugins", name))
        for option in ("cross_entropy", "fused_linear_cross_entropy"):
            if config.plugins.get("liger", {}).get(option):
                what, key = "liger's loss cannot be combined with that of a teacher", ("plugins", "liger", option)
                yield Problem(what, f"plugin liger, option {option}", "remove it; liger's other kernels can stay", key)
        if self.teacher:
            yield from self._teacher_problems(config)
        if self.rows:
            yield from self._store_problems()

    def _teacher_problems(self, config: RunConfig) -> Iterator[Problem]:
        path = Path(self.teacher)
        if path.is_absolute() and not path.is_dir():
            key = ("plugins", "distill", "teacher")
            yield Problem(f"there is no directory {self.teacher!r}", TEACHER, "correct the path", key)
        if config.plugins.get("deepspeed", {}).get("stage") == 3:
            yield partitioned()

    def _store_problems(self) -> Iterator[Problem]:
        from sftkit.api import TokenStore

        try:
            about = TokenStore.open(self.rows, ROWS).about
        except ConfigError as error:
            for problem in error.problems:
                yield dataclasses.replace(problem, fix="write them with `sftkit distill-rows CONFIG --to DIR`")
            return
        if about["temperature"] != self.temperature:
            what = f"the rows were stored at temperature {about['temperature']:g}, but this is {self.temperature:g}"
            fix = f"set temperature: {about['temperature']:g}, or store them again"
            yield Problem(what, "plugin distill, option temperature", fix, ("plugins", "distill", "temperature"))
        for option in ("dtype", "device", "loaders"):
            if getattr(self, option):
                what = "no teacher runs, so this has no effect"
                yield Problem(what, f"plugin distill, option {option}", "remove it", ("plugins", "distill", option))

    @hookimpl
    def check_prepared(self, run: PreparedRun) -> Iterator[Verdict]:
        """Whether the teacher has the tokenizer of the run, and whether the values of all rows are stored."""
        from sftkit_plugins.distill.checks import stored_verdicts, teacher_verdict

        if self.teacher:
            yield teacher_verdict(self, run)
        else:
            yield from stored_verdicts(self, run)

    @hookimpl
    def make_loss(self, model: Any, config: RunConfig) -> HeadLoss:
        """The loss with its teacher, which is loaded here, or without weights for a model without weights."""
        from sftkit_plugins.distill.teacher import online_loss, stored_loss

        return online_loss(self, model, config) if self.teacher else stored_loss(self)


def partitioned() -> Problem:
    """Says that ZeRO-3 cannot be used with a teacher."""
    what = "ZeRO-3 would partition the weights of the teacher as it loads them"
    fix = "set stage: 2, use plugin fsdp, or store the teacher's values with `sftkit distill-rows`"
    return Problem(what, "plugin deepspeed, option stage", fix, ("plugins", "deepspeed", "stage"))
