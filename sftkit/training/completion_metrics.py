"""Metrics of an evaluation that need completions: exact match, ROUGE, BLEU, and those of the user and of plugins."""

from __future__ import annotations

import functools
import logging
import math
import numbers
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from sftkit.errors import Problem, RunError, SftkitError
from sftkit.training.completions import Completion, HeldOut, complete_prompts

if TYPE_CHECKING:
    from sftkit.config.models import EvaluateSection

logger = logging.getLogger("sftkit")

#: What a metric is: a function of the completions of an evaluation set. It may have an attribute ``names``, the names
#: of the values that it returns.
Metric: TypeAlias = Callable[[Sequence[Completion]], float | Mapping[str, float]]


class CompletionMetrics:
    """Completes the rows of an evaluation set, and computes metrics of the completions.

    The processes divide the rows among them, unless the weights are sharded: then each completes all rows. The first
    process computes the metrics, and the others receive them.

    Args:
        metrics: the functions by the name that ``evaluate.metrics`` has for them.
        settings: how many rows are completed, and how far.

    Attributes:
        completions: those of the last evaluation, by the prefix of its metrics, such as ``eval``.
    """

    def __init__(self, metrics: Mapping[str, Metric], settings: EvaluateSection) -> None:
        self._metrics, self._settings = dict(metrics), settings
        self.completions: dict[str, list[Completion]] = {}
        self._noted: set[str] = set()

    def measure(self, trainer: Any, rows: Any, prefix: str) -> dict[str, float]:
        """The metrics of an evaluation set, with the model as it is now.

        Args:
            trainer: the trainer that evaluates.
            rows: the evaluation set.
            prefix: of the metrics' names, such as ``eval`` or ``eval_NAME``.

        Raises:
            DataError: if no row has a completion, or rows have images.
            RunError: if a metric fails, or returns anything but numbers by name.
        """
        held_out = HeldOut.of(rows, self._settings.rows, f"data.{prefix.replace('_', '.', 1)}")
        tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
        self._note(held_out, rows, prefix)
        made = self._complete(trainer, tokenizer, held_out)
        self.completions[prefix] = made
        values = _from_first(lambda: compute(self._metrics, made), trainer)
        return {f"{prefix}_{name}": value for name, value in values.items()}

    def _complete(self, trainer: Any, tokenizer: Any, held_out: HeldOut) -> list[Completion]:
        prompts, longest = held_out.prompts, self._settings.max_new_tokens
        processes, own = trainer.args.world_size, trainer.args.process_index
        divided = processes > 1 and not is_sharded(trainer)
        share = prompts[own::processes] if divided else prompts
        before_batch = None if processes > 1 or trainer.stopping is None else functools.partial(_may_stop, trainer)
        with trainer.autocast_smart_context_manager():
            made = complete_prompts(
                trainer.model, tokenizer, share, longest, trainer.args.per_device_eval_batch_size, before_batch
            )
        if not divided:
            return made
        from accelerate.utils import gather_object

        return sorted(gather_object(made), key=lambda completion: completion.row)

    def _note(self, held_out: HeldOut, rows: Any, prefix: str) -> None:
        """Log once for each set what is not completed."""
        if prefix in self._noted:
            return
        self._noted.add(prefix)
        prompts, limit = held_out.prompts, self._settings.max_new_tokens
        if held_out.without:
            logger.warning(
                "%s: %d rows have no prompt before a trained part, and are not completed", prefix, held_out.without
            )
        if too_long := sum(len(prompt.reference) > limit for prompt in prompts):
            logger.warning(
                "%s: %d of %d references have more than evaluate.max_new_tokens=%d tokens: their completions are cut",
                *(prefix, too_long, len(prompts), limit),
            )


def _may_stop(trainer: Any) -> None:
    """Leave the evaluation if the run has to stop."""
    trainer.stopping.on_prediction_step(trainer.args, trainer.state, trainer.control)


def is_sharded(trainer: Any) -> bool:
    """Whether no process has all weights of the model."""
    parallel = getattr(trainer.args, "parallelism_config", None) is not None
    return bool(trainer.sharded or parallel)


def compute(metrics: Mapping[str, Metric], completions: Sequence[Completion]) -> dict[str, float]:
    """The values of metrics by name. A metric that returns one number has the name of its function.

    The random states of Python and numpy are left as they were.

    Args:
        metrics: the functions by name: that of the metric, or ``module:function``.
        completions: of an evaluation set.

    Raises:
        RunError: if a metric fails, returns anything but numbers by name, or two metrics return one name.
    """
    values: dict[str, float] = {}
    for metric, function in metrics.items():
        with _random_state_kept():
            try:
                returned = function(completions)
            except SftkitError:
                raise
            except Exception as error:
                what = f"the metric {metric} fails: {type(error).__name__}: {error}"
                raise RunError(Problem(what, "evaluate.metrics", "correct the function, or drop the metric")) from error
        for name, value in _named(metric, returned).items():
            if name in values or name in ("loss", "token_accuracy"):
                what = f"the metric {metric} returns {name}, which is computed already"
                raise RunError(Problem(what, "evaluate.metrics", "return another name"))
            values[name] = value
    return values


def plain_name(metric: str) -> str:
    """The name of a metric in the log: without the module of a function."""
    return metric.rpartition(":")[2].rpartition(".")[2]


def _named(metric: str, returned: Any) -> dict[str, float]:
    found = returned if isinstance(returned, Mapping) else {plain_name(metric): returned}
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, numbers.Real) or not math.isfinite(value):
            what = f"the metric {metric} returns {returned!r}"
            raise RunError(Problem(what, "evaluate.metrics", "return a number, or a mapping of names to numbers"))
    return {name: float(value) for name, value in found.items()}


@contextmanager
def _random_state_kept() -> Iterator[None]:
    import numpy as np
    import torch

    python, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)


def _from_first(function: Callable[[], dict[str, float]], trainer: Any) -> dict[str, float]:
    """What the function returns in the first process, in every process; an error of it is raised in each of them."""
    if trainer.args.world_size == 1:
        return function()
    from accelerate.utils import broadcast_object_list

    outcome: list[Any] = [None, None]
    if trainer.args.process_index == 0:
        try:
            outcome[0] = function()
        except SftkitError as error:
            outcome[1] = error
    values, failure = broadcast_object_list(outcome)
    if failure is not None:
        raise failure
    return dict(values)
