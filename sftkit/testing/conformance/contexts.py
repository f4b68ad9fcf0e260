"""Contexts around the training restore the model, whatever happens inside; noise is noise, and only in training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sftkit.testing.conformance.checks import check, require, skip
from sftkit.testing.conformance.kernels import GRADIENTS, LOGITS, distance, results
from sftkit.testing.conformance.state import ModelState, summary

if TYPE_CHECKING:
    from sftkit.testing.conformance.workbench import Workbench

CONTEXTS = ("reduce_activations", "inject_noise", "training_context")
RESTORE = "undo every change on exit: with contextlib.contextmanager, put `yield` into try and the undoing into finally"


class _BodyError(Exception):
    """What the body of a context raises in a check."""


@check(*CONTEXTS)
def restored_after_exit(bench: Workbench, hook: str) -> None:
    """The model is restored, bit by bit, when training ends"""
    model = bench.model()
    before = ModelState.of(model)
    with _context(bench, hook, model):
        results(model, bench.batch(model))
    changed = summary(before.changes(ModelState.of(model)))
    require(not changed, changed, RESTORE)


@check(*CONTEXTS)
def restored_after_an_exception(bench: Workbench, hook: str) -> None:
    """The model is restored, bit by bit, when training fails"""
    model = bench.model()
    before = ModelState.of(model)
    try:
        with _context(bench, hook, model):
            results(model, bench.batch(model))
            raise _BodyError
    except _BodyError:
        passed_on = True
    else:
        passed_on = False
    changed = summary(before.changes(ModelState.of(model)))
    require(not changed, changed, RESTORE)
    require(passed_on, "it swallows an exception of the training", "return nothing from __exit__, and catch nothing")


@check(*CONTEXTS)
def can_be_entered_again(bench: Workbench, hook: str) -> None:
    """A second training in the same process works"""
    model = bench.model()
    for _ in range(2):
        with _context(bench, hook, model):
            results(model, bench.batch(model))


@check("inject_noise")
def noise_in_training(bench: Workbench, hook: str) -> None:
    """Noise changes the forward of a model in training mode"""
    model = bench.model()
    batch = bench.batch(model)
    plain = _logits(model, batch)
    with _context(bench, hook, model):
        noisy = _logits(model, batch)
    fix = "add the noise while model.training is true"
    require(not noisy.equal(plain), "the logits in training mode are the same with and without it", fix)


@check("inject_noise")
def no_noise_in_evaluation(bench: Workbench, hook: str) -> None:
    """Noise leaves a model in evaluation mode alone, bit by bit"""
    model = bench.model().eval()
    batch = bench.batch(model)
    plain = _logits(model, batch)
    with _context(bench, hook, model):
        evaluated = _logits(model, batch)
    fix = "add the noise only while model.training is true, or losses of evaluations are those of another model"
    require(evaluated.equal(plain), "the logits in evaluation mode are others with it", fix)


@check("reduce_activations")
def same_loss_and_gradients(bench: Workbench, hook: str) -> None:
    """Loss and gradients are those of a model that keeps its activations"""
    model = bench.model()
    batch = bench.batch(model)
    expected = results(model, batch)
    with _context(bench, hook, model):
        found = results(model, batch)
    fix = "recompute what is not kept, with the same random numbers"
    for what, most in {"logits": LOGITS, "gradients": GRADIENTS}.items():
        for name, value in expected[what].items():
            require(name in found[what], f"{name} has no gradient inside the context", fix)
            apart = distance(found[what][name], value)
            require(apart <= most, f"the {what} {f'of {name} ' if name else ''}differ by {apart:.2g}", fix)


def _logits(model: Any, batch: dict[str, Any]) -> Any:
    import torch

    with torch.no_grad(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits


def _context(bench: Workbench, hook: str, model: Any) -> Any:
    """The context of a hook.

    Raises:
        CheckFailed: if it is none.
        CheckSkipped: if the plugin has none for this run.
    """
    known: dict[str, Any] = {"model": model}
    if hook == "reduce_activations":
        known |= {"config": bench.config, "batch": bench.batch(model), "plugins": bench.prepared.plugins}
    if hook == "training_context":
        known |= {"config": bench.config, "rows": bench.prepared.data.train, "collator": bench.prepared.collator}
    context = bench.own(hook, **known)
    if context is None and hook == "reduce_activations":
        skip("it returns None for the kit's run")
    what = f"it returns {type(context).__name__}, which is no context manager"
    require(hasattr(context, "__enter__"), what, "decorate the method with contextlib.contextmanager")
    return context
