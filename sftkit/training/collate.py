"""The contract of a collator, and the collator of a run, which is held to it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from sftkit.data.columns import ATTACHED, LOSS_WEIGHTS
from sftkit.errors import HookError, Problem, RunError, SftkitError

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("sftkit")


class Collator(Protocol):
    """Makes a batch from examples; holds only data that can be pickled for the workers of a data loader."""

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """A batch: ``input_ids`` and ``labels`` (int64, ``[B, T]``), and whatever else the model needs.

        Rows with ``position_ids`` hold several documents: their batch has ``position_ids`` and no
        ``attention_mask``, which isolates the documents from each other. If an example has ``loss_weights``, so
        has the batch (float32, ``[B, T]``). For tensors that do not have one entry per row, such as images,
        ``row_shares`` maps their name to the number of entries of each row (int64, ``[B]``), or to None if it is
        unknown. ``docs/collator.md`` has all of it.
        """


@dataclass(frozen=True)
class BatchChoice:
    """How the batches of a training are made, as a plugin decided when it tried the model.

    A context manager of ``training_context`` yields it. Those that are entered after it get the chosen collator.

    Attributes:
        reason: what was decided, and why; for the log and the run's manifest.
        collator: makes the batches; None for the run's own collator.
    """

    reason: str
    collator: Collator | None = None


@dataclass
class CurrentCollator:
    """The collator of the batches, as far as plugins have decided: the run's own until one of them chooses another.

    Attributes:
        collator: that collator.
    """

    collator: Collator

    @property
    def pads_only(self) -> bool:
        """Whether its batches are the examples and padding, so that they may be made without padding as well."""
        return bool(getattr(self.collator, "pads_only", False))

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The collator's batch."""
        return self.collator(examples)

    def follow(self, yielded: Any) -> None:
        """Take the collator of a `BatchChoice`, if it is one and has one."""
        if isinstance(yielded, BatchChoice) and yielded.collator is not None:
            self.collator = yielded.collator


@dataclass
class CheckedCollator:
    """The collator of a run, whose batches are compared with the examples that they are made of.

    Of the batches of each kind of examples (packed or not, with weights or not, with attachments or not), the 1st, 2nd,
    4th, 8th and so on are compared value by value, in each process that makes batches; of all others the keys, dtypes
    and shapes are. The batches are in the memory of the host, so that no device is waited for.

    Attributes:
        collator: the collator.
        plugin: the name of the plugin that made it; empty if it is among the run's inputs.
        where: the place of its problems.
        fewer: whether it was logged that it trains fewer tokens than the examples.
    """

    collator: Collator
    plugin: str = ""
    where: str = "Pipeline(collator=...)"
    fewer: bool = False
    _made: dict[tuple[bool, ...], int] = field(default_factory=dict)

    @property
    def pads_only(self) -> bool:
        """Whether its batches are the examples and padding, so that they may be made without padding as well."""
        return bool(getattr(self.collator, "pads_only", False))

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The collator's batch.

        Raises:
            HookError: if the collator of a plugin fails.
            RunError: if the collator of the run's inputs fails, or a batch does not keep the contract.
        """
        kind = tuple(name in examples[0] for name in ("position_ids", LOSS_WEIGHTS, ATTACHED)) if examples else ()
        number = self._made[kind] = self._made.get(kind, 0) + 1
        return self._checked(examples, values=number & (number - 1) == 0)

    def try_on(self, examples: list[dict[str, Any]]) -> None:
        """Make a batch, and compare it value by value; raises as a call does."""
        self._checked(examples, values=True)

    def _checked(self, examples: list[dict[str, Any]], values: bool) -> dict[str, Tensor]:
        from sftkit.training.contract import form_problem, trained_fewer, value_problem
        from sftkit.training.placed import Given

        given = Given.of(examples) if values else None
        batch = self._batch(examples)
        problem = form_problem(batch, examples if given is None else given.examples)
        if problem is None and given is not None:
            problem = value_problem(batch, given, examples)
            if problem is None and not self.fewer and (fewer := trained_fewer(batch, given.examples)):
                self.fewer = True
                logger.warning("%s: %s", self.where, fewer)
        if problem is not None:
            raise RunError(Problem(problem.what, self.where, problem.fix))
        return batch

    def _batch(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        try:
            return self.collator(examples)
        except SftkitError:
            raise
        except Exception as error:  # a collator is anyone's code
            if self.plugin:
                raise HookError(self.plugin, "make_collator", error) from error
            what = f"the collator fails: {type(error).__name__}: {error}"
            raise RunError(Problem(what, self.where, "correct the collator")) from error


def unchecked(collator: Any) -> Any:
    """The collator inside a `CheckedCollator`; any other one itself."""
    return collator.collator if isinstance(collator, CheckedCollator) else collator
