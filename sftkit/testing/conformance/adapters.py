"""What is trained of a model, and that it can be saved and loaded again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sftkit.testing.conformance.checks import check, require, skip
from sftkit.testing.conformance.kernels import results
from sftkit.testing.conformance.state import ModelState

if TYPE_CHECKING:
    from sftkit.testing.conformance.workbench import Workbench


def _adapted(bench: Workbench, model: Any) -> Any:
    """The model as the run adapts it."""
    from sftkit.models.adapt import adapted_model

    return adapted_model(model, bench.config, bench.plugins, [])


@check("prepare_base")
def base_is_kept(bench: Workbench, hook: str) -> None:
    """Weights keep their values, and it returns True or None"""
    import torch

    model = bench.model()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    done = bench.own("prepare_base", model=model, config=bench.config)
    require(done in (True, None), f"it returns {done!r}", "return True when done, and None for a model to leave alone")
    if done is None:
        skip("it leaves the kit's model alone")
    for name, weight in model.named_parameters():
        same = name in before and torch.equal(weight.detach().float(), before[name].float())
        require(same, f"{name} has other values", "cast weights, and change no value")


@check("adapt_model")
def base_stays(bench: Workbench, hook: str) -> None:
    """Something is trained, and the weights of the base keep their values"""
    from sftkit.models.inspect import has_adapter

    model = bench.loaded_model()
    state = ModelState.of(model)
    before = {each.identity: (name, each) for name, each in state.tensors.items()}
    adapted = _adapted(bench, model)
    trained = [weight for weight in adapted.parameters() if weight.requires_grad]
    require(trained, "nothing of the model is trained", "set requires_grad of what the plugin trains")
    now = {each.identity: each for each in ModelState.of(adapted).tensors.values()}
    for identity, (name, each) in before.items():
        if (found := now.get(identity)) is None:
            continue
        same = found.dtype != each.dtype or found.bits.equal(each.bits)
        require(same, f"the values of {name} changed", "leave the weights of the base; begin an adapter that adds 0")
        frozen = not has_adapter(adapted) or not found.requires_grad
        require(frozen, f"{name} of the base is trained beside the adapter", "freeze the base: it is not saved")


@check("adapt_model")
def everything_gets_gradients(bench: Workbench, hook: str) -> None:
    """Whatever is trained gets a gradient"""
    model = _adapted(bench, bench.loaded_model()).train()
    found = results(model, bench.batch(model))["gradients"]
    without = [name for name, weight in model.named_parameters() if weight.requires_grad and name not in found]
    fix = "set requires_grad=False for what the forward does not use: other processes would wait for its gradient"
    require(not without, f"{len(without)} trained weights get no gradient, such as {without[:1]}", fix)
