"""An optimizer trains every trained weight once, and can be saved with a checkpoint."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from sftkit.testing.conformance.checks import CheckFailed, check, described, require, skip

if TYPE_CHECKING:
    from sftkit.testing.conformance.workbench import Workbench


def _optimizer(bench: Workbench, model: Any) -> Any:
    made = bench.own("make_optimizer", model=model, config=bench.config)
    return skip("it leaves the optimizer of the kit's run to the Trainer") if made is None else made


def _step(optimizer: Any, model: Any, batch: dict[str, Any]) -> set[str]:
    """Make a step; returns the names of the weights that got a gradient."""
    if callable(getattr(optimizer, "train", None)):  # of those that average the weights
        optimizer.train()
    model(**batch, use_cache=False).loss.backward()
    pushed = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    optimizer.step()
    optimizer.zero_grad()
    return pushed


@check("make_optimizer")
def trains_each_weight_once(bench: Workbench, hook: str) -> None:
    """Each trained weight is in one group, and no frozen one is"""
    from torch.optim import Optimizer

    model = bench.model()
    model.get_input_embeddings().requires_grad_(False)
    optimizer = _optimizer(bench, model)
    what = f"it returns {type(optimizer).__name__}, which is no torch.optim.Optimizer"
    require(isinstance(optimizer, Optimizer), what, "return an optimizer, made for this model")
    found = Counter(id(weight) for group in optimizer.param_groups for weight in group["params"])
    for name, weight in model.named_parameters():
        times = found[id(weight)]
        fix = "put each weight with requires_grad into exactly one group"
        require(times >= weight.requires_grad, f"{name} is trained, and in no group", fix)
        require(times <= weight.requires_grad, f"{name} is in {times} groups, with requires_grad {times > 1}", fix)


@check("make_optimizer")
def a_step_changes_weights(bench: Workbench, hook: str) -> None:
    """Two steps change each weight that gets a gradient, and all stay finite"""
    model = bench.model()
    optimizer = _optimizer(bench, model)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    pushed = _step(optimizer, model, bench.batch(model)) | _step(optimizer, model, bench.batch(model))
    same = [name for name, weight in model.named_parameters() if weight.equal(before[name])]
    require(len(same) < len(before), "two steps change no weight", "use the learning rate of the configuration")
    left = [name for name in same if name in pushed]
    what = f"{', '.join(left[:3])} ({len(left)} in all) got a gradient, and two steps leave them as they are"
    require(not left, what, "update each weight of each group in `step`")
    wrong = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    require(not wrong, f"{', '.join(wrong[:3])} is not finite after two steps", "check the update")


@check("make_optimizer")
def steps_without_data(bench: Workbench, hook: str) -> None:
    """A step works on the meta device, where `sftkit check` estimates its memory"""
    from sftkit.memory.made import state_after_step
    from sftkit.models.unloaded import without_data

    model = bench.model()
    with without_data(model):
        optimizer = _optimizer(bench, model)
    try:
        state_after_step(optimizer)
    except Exception as error:
        what = f"a step of weights without values fails: {described(error)}"
        raise CheckFailed(
            what, "let no branch depend on values: use torch.where in place of if, and no item()"
        ) from error


@check("make_optimizer")
def its_state_is_saved(bench: Workbench, hook: str) -> None:
    """Its state can be saved and loaded, as when a run is resumed"""
    import io

    import torch

    model = bench.model()
    optimizer = _optimizer(bench, model)
    _step(optimizer, model, bench.batch(model))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = bench.model()
    other.load_state_dict(model.state_dict())
    again = _optimizer(bench, other)
    again.load_state_dict(torch.load(file, weights_only=True))
    for one, its_model in ((optimizer, model), (again, other)):
        _step(one, its_model, bench.batch(its_model))
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    fix = "keep everything in the state of the optimizer, as torch's own do"
    same = all(torch.allclose(one, other, atol=1e-6) for one, other in pairs)
    require(same, "the step after loading is another than without", fix)
