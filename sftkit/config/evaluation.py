"""The section ``evaluate``: the training arguments that it sets, and what it has to fit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sftkit.errors import Problem

if TYPE_CHECKING:
    from sftkit.config.models import RunConfig

#: Words in the names of metrics that are better if they are smaller, and if they are larger.
SMALLER_IS_BETTER = re.compile(r"loss|perplexity|ppl|nll|byte|errors?|wer|cer|ter|mse|rmse|mae|distance")
LARGER_IS_BETTER = re.compile(
    r"acc|accuracy|exact|match|rouge(\d|l|lsum)?|bleu\d?|f1|chrf|precision|recall|scores?|pass|reward"
)
#: The key of the section that sets a training argument.
_SET_BY = {
    "eval_strategy": "every",
    "eval_steps": "every",
    "metric_for_best_model": "best",
    "load_best_model_at_end": "best",
    "save_strategy": "best",
    "save_steps": "best",
    "greater_is_better": "best",
}


def smaller_is_better(metric: str) -> bool | None:
    """Whether a smaller value of a metric is better, by its name; None if the name does not say.

    The last word that says so counts: ``eval_loss`` and ``bits_per_byte`` are better if they are smaller,
    ``exact_match`` and ``rougeL`` if they are larger.
    """
    for word in reversed(re.findall(r"[a-z0-9]+", metric.lower())):
        if SMALLER_IS_BETTER.fullmatch(word):
            return True
        if LARGER_IS_BETTER.fullmatch(word):
            return False
    return None


def fields_of(config: RunConfig) -> dict[str, Any]:
    """The training arguments that the section ``evaluate`` sets.

    Every model that can be the best is saved: at each evaluation, or only if it is the best so far with
    ``train.save_strategy: best``. For a metric such as the perplexity, ``greater_is_better`` is set too, since
    transformers takes every metric for one of which more is better unless its name ends with ``loss``.
    """
    chosen, train = config.evaluate, config.train
    values: dict[str, Any] = {}
    if chosen.every is not None:
        values |= {"eval_strategy": "steps", "eval_steps": chosen.every}
    if chosen.best is not None:
        values |= {"metric_for_best_model": chosen.best, "load_best_model_at_end": True}
        evaluated = {"eval_strategy": "no"} | train | values
        if train.get("save_strategy") != "best" and evaluated["eval_strategy"] != "no":
            values["save_strategy"] = evaluated["eval_strategy"]
            if evaluated["eval_strategy"] == "steps":
                values["save_steps"] = evaluated.get("eval_steps") or train.get("logging_steps", 10)
    metric = str(values.get("metric_for_best_model") or train.get("metric_for_best_model") or "")
    if smaller_is_better(metric) and not metric.endswith("loss") and train.get("greater_is_better") is None:
        values["greater_is_better"] = False
    return values


def set_by(config: RunConfig, name: str) -> tuple[str, str]:
    """The section and the key that set a training argument."""
    key = _SET_BY.get(name, "")
    if name not in config.train and name in fields_of(config) and getattr(config.evaluate, key) is not None:
        return "evaluate", key
    return "train", name


def evaluation_problems(config: RunConfig, has_sets: bool, trains: bool, stops_early: bool) -> Iterator[Problem]:
    """What does not fit together in the section ``evaluate``, or contradicts the section ``train``.

    Args:
        config: the run as resolved.
        has_sets: whether there is evaluation data.
        trains: whether the run has steps.
        stops_early: whether an ``EarlyStoppingCallback`` was passed.
    """
    chosen, values = config.evaluate, fields_of(config)
    asked = next((key for key in ("every", "best", "patience") if getattr(chosen, key) is not None), "")
    if asked and not has_sets:
        fix = f"set data.eval, for instance data.eval=0.05, or remove evaluate.{asked}"
        yield _problem(asked, "there is no evaluation data", fix)
    elif asked and not trains:
        fix = f"remove evaluate.{asked}, or raise train.max_steps"
        yield _problem(asked, "does nothing in a run without steps", fix)
    elif chosen.best is not None and (values | config.train).get("eval_strategy", "no") == "no":
        what = "the best model is only known from evaluations during training"
        yield _problem("best", what, "set evaluate.every, for instance evaluate.every=100")
    if chosen.patience is not None and chosen.best is None:
        fix = "set evaluate.best, for instance evaluate.best=eval_loss"
        yield _problem("patience", "no metric says what is better", fix)
    elif chosen.patience is not None and stops_early:
        fix = "remove one of them"
        yield _problem("patience", "the EarlyStoppingCallback among the callbacks also stops the run early", fix)
    if chosen.min_delta and chosen.patience is None:
        yield _problem("min_delta", "does nothing without evaluate.patience", "set evaluate.patience, or remove it")
    for name, value in values.items():
        configured = config.train.get(name, value)
        if configured != value and _bare(configured) != _bare(value):
            key = _SET_BY[name]
            what = f"train.{name} is {configured}, but evaluate.{key} sets it to {value}"
            yield Problem(what, f"train.{name}", f"remove train.{name} or evaluate.{key}", ("train", name))


def _bare(metric: Any) -> str:
    return str(metric).removeprefix("eval_")


def _problem(key: str, what: str, fix: str) -> Problem:
    return Problem(what, f"evaluate.{key}", fix, ("evaluate", key))
