"""Checks of the section ``train`` that need neither torch nor transformers: ranges, and what fits together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sftkit.config.evaluation import evaluation_problems, fields_of, set_by
from sftkit.config.train_fields import CHECKPOINTING_KEYS, FILE_FIELDS, evaluates_only, train_value
from sftkit.errors import Problem, nearest

if TYPE_CHECKING:
    from sftkit.config.models import RunConfig

MOST = 2**31 - 1  # what every counter of torch and of the operating systems holds
#: What every evaluation computes. A loss of a plugin may have further measures.
METRICS = ("loss", "token_accuracy", "runtime", "samples_per_second", "steps_per_second")
SPEEDS = METRICS[2:]
SETS_FIX = "set data.eval, for instance data.eval=0.05"


@dataclass(frozen=True)
class Bounds:
    """The values that a field may have, besides None.

    Attributes:
        words: in words, for the error.
        least: the smallest value.
        most: the largest value.
        open: whether ``least`` itself is excluded.
        open_end: whether ``most`` itself is excluded.
        steps: whether values from 1 on must be whole, since they are numbers of steps.
    """

    words: str
    least: float = 0
    most: float = MOST
    open: bool = False
    open_end: bool = False
    steps: bool = False

    def include(self, value: float) -> bool:
        """Whether a value is allowed."""
        if not math.isfinite(value) or not self.least <= value <= self.most:
            return False
        if (self.open and value == self.least) or (self.open_end and value == self.most):
            return False
        return not self.steps or value < 1 or value == int(value)


_COUNT = Bounds("a whole number of at least 1", 1)
_NOT_NEGATIVE = Bounds("a number of at least 0")
_POSITIVE = Bounds("a number above 0", open=True)
_BETA = Bounds("a number from 0 up to, but not including 1", most=1, open_end=True)
_STEPS = Bounds("a whole number of steps, or a fraction of all steps between 0 and 1", open=True, steps=True)
_SEED = Bounds("a whole number from 0 to 4294967295", most=2**32 - 1)
BOUNDS: dict[str, Bounds] = {
    **dict.fromkeys(
        (
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "torch_empty_cache_steps",
            "eval_accumulation_steps",
            "dataloader_prefetch_factor",
            "ddp_bucket_cap_mb",
        ),
        _COUNT,
    ),
    **dict.fromkeys(("num_train_epochs", "weight_decay", "max_grad_norm", "eval_delay"), _NOT_NEGATIVE),
    **dict.fromkeys(("learning_rate", "adam_epsilon"), _POSITIVE),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), _BETA),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), _STEPS),
    **dict.fromkeys(("seed", "data_seed"), _SEED),
    "warmup_steps": Bounds("a whole number of steps, or a fraction of all steps below 1", steps=True),
    "max_steps": Bounds("-1 for no limit, 0 to evaluate only, or a number of steps", -1),
    "save_total_limit": Bounds("a whole number of at least 1, or null to keep every checkpoint", 1),
    "dataloader_num_workers": Bounds("a whole number from 0 to 1024", most=1024),
}
#: Fields that do nothing unless another is set, and what to set.
_NEEDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision"), ("push_to_hub",)
    ),
    **dict.fromkeys(("eval_steps", "eval_delay", "metric_for_best_model"), ("eval_strategy",)),
    "greater_is_better": ("metric_for_best_model",),
    **{f"{key}_kwargs": CHECKPOINTING_KEYS for key in CHECKPOINTING_KEYS},
    **dict.fromkeys(
        ("dataloader_prefetch_factor", "dataloader_persistent_workers", "dataloader_multiprocessing_context"),
        ("dataloader_num_workers",),
    ),
}
#: Fields that only change how predictions reach a ``compute_metrics``.
_FOR_METRICS = (
    "batch_eval_metrics",
    "eval_accumulation_steps",
    "eval_do_concat_batches",
    "eval_use_gather_object",
    "include_for_metrics",
)


@dataclass(frozen=True)
class Surroundings:
    """What the section ``train`` has to fit, besides the configuration.

    Attributes:
        sets: names of the evaluation sets.
        compute_metrics: whether the caller passed a function that computes metrics.
        open_metrics: whether callbacks or a plugin's loss may add metrics of any name.
        stops_early: whether an ``EarlyStoppingCallback`` was passed.
        completing: the names under which ``evaluate.metrics`` are logged, as far as they are known.
    """

    sets: tuple[str, ...] = ()
    compute_metrics: bool = False
    open_metrics: bool = False
    stops_early: bool = False
    completing: tuple[str, ...] = ()


def value_problems(values: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Key, message and fix of each value that is out of range."""
    for key, value in values.items():
        bounds = BOUNDS.get(key)
        if bounds and isinstance(value, int | float) and not bounds.include(value):
            yield key, f"{value!r} is out of range", f"use {bounds.words}"
        elif key.endswith("_kwargs") and isinstance(value, str):
            yield key, f"{value!r} is not a mapping", "write a mapping, as in {name: value}"
        elif key in FILE_FIELDS and isinstance(value, str) and not value.strip():
            yield key, "names no file", "give a mapping, or the path of a JSON file"


def training_problems(config: RunConfig, around: Surroundings) -> list[Problem]:
    """What does not fit together in the sections ``train`` and ``evaluate``, or does nothing."""
    found = [
        *evaluation_problems(config, bool(around.sets), not evaluates_only(config), around.stops_early),
        *_evaluation(config, around),
        *_best_model(config, around),
        *_metrics(config, around),
        *_without_effect(config, around),
        *_skipping(config),
        *_warming_up(config),
        *_completing(config, around),
    ]
    placed = [_where_it_is_set(config, problem) for problem in found]
    return list({problem.key: problem for problem in reversed(placed)}.values())[::-1]  # the first of each key


def _where_it_is_set(config: RunConfig, problem: Problem) -> Problem:
    """The problem of a training argument, placed in the section ``evaluate`` if that sets the argument."""
    if problem.key[:1] != ("train",) or (key := set_by(config, problem.key[1])) == problem.key:
        return problem
    return replace(problem, where=".".join(key), key=key)


def _problem(key: str, what: str, fix: str) -> Problem:
    return Problem(what, f"train.{key}", fix, ("train", key))


def _evaluation(config: RunConfig, around: Surroundings) -> Iterator[Problem]:
    strategy = train_value(config, "eval_strategy")
    if evaluates_only(config) and not around.sets:
        key = "max_steps" if train_value(config, "max_steps") == 0 else "num_train_epochs"
        yield _problem(key, "there is nothing to train and nothing to evaluate", f"raise train.{key}, or {SETS_FIX}")
    if not around.sets:
        if strategy != "no":
            yield _problem("eval_strategy", "there is no evaluation data", f"{SETS_FIX}, or train.eval_strategy=no")
        if train_value(config, "eval_on_start"):
            yield _problem("eval_on_start", "there is no evaluation data", f"{SETS_FIX}, or remove it")
    if strategy == "no":
        scheduler = train_value(config, "lr_scheduler_type")
        fix = "set train.eval_strategy to steps or epoch"
        if scheduler in ("reduce_lr_on_plateau", "greedy"):
            yield _problem("lr_scheduler_type", f"{scheduler} needs evaluations during training", fix)
        if train_value(config, "save_strategy") == "best":
            yield _problem("save_strategy", "the best model is only known from evaluations during training", fix)
        if train_value(config, "load_best_model_at_end"):
            what = "the best model is only known from evaluations during training"
            yield _problem("load_best_model_at_end", what, fix)
        if around.stops_early:
            yield _problem("eval_strategy", "the EarlyStoppingCallback needs evaluations during training", fix)


def _best_model(config: RunConfig, around: Surroundings) -> Iterator[Problem]:
    saves, evaluates = train_value(config, "save_strategy"), train_value(config, "eval_strategy")
    if train_value(config, "load_best_model_at_end") and evaluates != "no" and saves not in ("best", evaluates):
        what = f"the best model cannot be loaded: the run evaluates by {evaluates} and saves by {saves}"
        yield _problem("load_best_model_at_end", what, f"set train.save_strategy={evaluates}")
    elif train_value(config, "load_best_model_at_end") and saves == evaluates == "steps":
        save, evaluate = (float(train_value(config, f"{name}_steps") or 0) for name in ("save", "eval"))
        evaluate = evaluate or float(train_value(config, "logging_steps"))
        times = save / evaluate
        if (save < 1) != (evaluate < 1) or round(times) < 1 or not math.isclose(times, round(times), abs_tol=1e-6):
            what = (
                f"the best model may not be saved: the run evaluates every {evaluate:g} steps, and saves every {save:g}"
            )
            yield _problem("save_steps", what, "set train.save_steps to a multiple of train.eval_steps")
    if train_value(config, "metric_for_best_model") is None:
        fix = f"set train.metric_for_best_model={metric_names(around)[0]}"
        if saves == "best":
            yield _problem("save_strategy", "no metric says which model is the best", fix)
        if around.stops_early and not _needs_metric(config):
            yield _problem("metric_for_best_model", "the EarlyStoppingCallback needs a metric", fix)


def _needs_metric(config: RunConfig) -> bool:
    plateau = train_value(config, "lr_scheduler_type") in ("reduce_lr_on_plateau", "greedy")
    return bool(train_value(config, "load_best_model_at_end") or plateau)


def best_metric(config: RunConfig) -> str:
    """The metric by which models are compared, without ``eval_``; empty if none is."""
    name = train_value(config, "metric_for_best_model") or ("loss" if _needs_metric(config) else "")
    return str(name).removeprefix("eval_")


def metric_names(around: Surroundings) -> list[str]:
    """The metrics of every evaluation, as they are logged. A single set has no name in them."""
    prefixes = [f"eval_{name}_" for name in around.sets] if len(around.sets) > 1 else ["eval_"]
    return [f"{prefix}{metric}" for prefix in prefixes for metric in (*METRICS, *around.completing)]


def _metrics(config: RunConfig, around: Surroundings) -> Iterator[Problem]:
    name = best_metric(config)
    known = metric_names(around)
    if not name or not around.sets or train_value(config, "eval_strategy") == "no" or f"eval_{name}" in known:
        return
    named = train_value(config, "metric_for_best_model") is not None
    key = "metric_for_best_model" if named else "load_best_model_at_end"
    setting = ".".join(set_by(config, "metric_for_best_model"))
    if len(around.sets) > 1 and not any(name.startswith(f"{item}_") for item in around.sets):
        losses = [metric for metric in known if metric.endswith("_loss")]
        what = f"with several evaluation sets, no metric is named eval_{name}"
        yield _problem(key, what, f"set {setting} to one set's metric, such as {', '.join(losses)}")
    elif not around.compute_metrics and not around.open_metrics:
        plain = [metric for metric in known if not metric.endswith(SPEEDS)]
        fix = nearest(f"eval_{name}", plain) or f"the metrics are: {', '.join(plain)}"
        yield _problem(key, f"nothing computes the metric eval_{name}", fix)


def _completing(config: RunConfig, around: Surroundings) -> Iterator[Problem]:
    """Metrics without rows to complete, and settings of completions without metrics."""
    section = config.evaluate
    if section.metrics and not around.sets:
        key = ("evaluate", "metrics")
        yield Problem("there are no held-out rows to complete", "evaluate.metrics", f"{SETS_FIX}, or remove it", key)
    for name in ("rows", "max_new_tokens"):
        default = type(section).model_fields[name].default
        if not section.metrics and getattr(section, name) != default:
            what, fix = "does nothing without evaluate.metrics", "set evaluate.metrics=[exact_match], or remove it"
            yield Problem(what, f"evaluate.{name}", fix, ("evaluate", name))


def _skipping(config: RunConfig) -> Iterator[Problem]:
    """What would change weights or optimizer state although a step is skipped."""
    if config.run.on_nan != "skip":
        return
    optimizer = str(train_value(config, "optim"))
    fix = "set run.on_nan: stop"
    if optimizer.endswith(("lomo", "_layerwise")) or optimizer.startswith("schedule_free"):
        what = f"the optimizer {optimizer} cannot skip a step that is not finite"
        yield Problem(what, "run.on_nan", f"{fix}, or choose another train.optim", ("run", "on_nan"))


def _warming_up(config: RunConfig) -> Iterator[Problem]:
    """A fraction that transformers would pass on as a number of steps."""
    optimizer, warmup = str(train_value(config, "optim")), float(train_value(config, "warmup_steps"))
    if optimizer in ("schedule_free_adamw", "schedule_free_sgd") and 0 < warmup < 1:
        what = f"the optimizer {optimizer} takes a number of steps, and not a fraction of all"
        yield _problem("warmup_steps", what, "set it to a number of steps, or use a plugin that is schedule-free")


def _without_effect(config: RunConfig, around: Surroundings) -> Iterator[Problem]:
    """Fields that do nothing. What is switched off by name may keep its other fields."""
    train = config.train
    configured = train | fields_of(config)
    for key, needed in _NEEDS.items():
        implied = key == "greater_is_better" and _needs_metric(config)
        if train.get(key) is not None and not implied and not any(other in configured for other in needed):
            yield _problem(key, f"does nothing without train.{needed[0]}", f"set train.{needed[0]}, or remove {key}")
    for kind in ("save", "eval", "logging"):
        key, strategy = f"{kind}_steps", configured.get(f"{kind}_strategy")
        if train.get(key) is not None and strategy not in (None, "steps", "no"):
            fix = f"set train.{kind}_strategy=steps, or remove it, as by train.{key}=null"
            yield _problem(key, f"does nothing with train.{kind}_strategy={strategy}", fix)
    if config.data.streaming and train.get("train_sampling_strategy", "random") not in ("random", "sequential"):
        what = f"a stream is read in its own order, not {train['train_sampling_strategy']}"
        yield _problem("train_sampling_strategy", what, "remove it, or set data.streaming=false")
    if train.get("lr_scheduler_kwargs") and train.get("lr_scheduler_type") in ("constant", "constant_with_warmup"):
        what = f"the scheduler {train['lr_scheduler_type']} takes no arguments"
        yield _problem("lr_scheduler_kwargs", what, "remove it, or choose another train.lr_scheduler_type")
    if all(train.get(key) is not None for key in CHECKPOINTING_KEYS):
        yield _problem(CHECKPOINTING_KEYS[0], f"{CHECKPOINTING_KEYS[1]} is set too", "remove one of them")
    if not around.compute_metrics:
        for key in _FOR_METRICS:
            if key in train and train[key] != train_value(config.model_copy(update={"train": {}}), key):
                yield _problem(key, "does nothing without a function that computes metrics", f"remove {key}")
    elif train.get("prediction_loss_only"):
        what = "the function that computes metrics would never be called"
        yield _problem("prediction_loss_only", what, "remove it")
