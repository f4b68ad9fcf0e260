# ruff: noqa: N803, N806 (suffixes are shapes)
"""Plugins with the mistakes that their authors make: in hooks that get the model."""

from __future__ import annotations

import contextlib

import torch
from torch import nn
from transformers import TrainerCallback

from sftkit.api import HeadLoss, Plugin, TokenLosses, dataclass, hookimpl


@torch.no_grad()
def scale(model):
    for weight in model.parameters():
        weight.data *= 1.01


@torch.no_grad()
def reinitialise(model):
    nn.init.normal_(model.get_input_embeddings().weight)


@torch.no_grad()
def reorder(model):
    weight = model.get_input_embeddings().weight
    weight.copy_(weight.flip(0))


@torch.no_grad()
def untie(model):
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())


def rename(model):
    for layer in model.model.layers:
        layer.mlp.fused = layer.mlp.gate_proj
        del layer.mlp.gate_proj


def freeze(model):
    model.get_input_embeddings().weight.requires_grad_(False)


#: What a `patch_kernels` does that it must not do, by name.
KERNELS = {
    "scales the weights": scale,
    "casts the weights": lambda model: model.half() and None,
    "casts a module": lambda model: model.lm_head.to(torch.bfloat16) and None,
    "reinitialises a module": reinitialise,
    "reorders rows of a weight": reorder,
    "freezes a module": freeze,
    "unfreezes the model": lambda model: model.requires_grad_(True) and None,
    "breaks a tie": untie,
    "renames parameters": rename,
    "leaves the model in eval mode": lambda model: model.eval() and None,
}


@dataclass(frozen=True, kw_only=True)
class Kernel(Plugin):
    """A kernel that does more than replace forwards."""

    how: str

    @hookimpl
    def patch_kernels(self, model):
        KERNELS[self.how](model)


def leave_hook(model):
    model.get_input_embeddings().register_forward_hook(lambda *_: None)
    yield


def leave_pre_hook(model):
    model.get_input_embeddings().register_forward_pre_hook(lambda *_: None)
    yield


def leave_gradient_hook(model):
    model.get_input_embeddings().weight.register_hook(lambda gradient: gradient)
    yield


def leave_hook_after_error(model):
    hook = model.get_input_embeddings().register_forward_hook(lambda *_: None)
    yield
    hook.remove()


def leave_forward(model):
    plain = model.get_input_embeddings().forward
    model.get_input_embeddings().forward = lambda ids: plain(ids) * 1.0
    yield


def leave_class_forward(model):
    plain = type(model.model.norm).forward
    type(model.model.norm).forward = lambda norm, states: plain(norm, states)
    yield


def leave_module(model):
    model.model.norm = nn.Sequential(model.model.norm)
    yield


def remove_hooks(model):
    yield
    model.get_input_embeddings()._forward_hooks.clear()


def freeze_within(model):
    freeze(model)
    yield
    model.get_input_embeddings().weight.requires_grad_(True)


def freeze_and_leave(model):
    freeze(model)
    yield


def scale_within(model):
    scale(model)
    yield
    with torch.no_grad():
        for weight in model.parameters():
            weight.data /= 1.01


def scale_at_exit(model):
    yield
    scale(model)


def cast_at_exit(model):
    yield
    model.bfloat16()


def swallow(model):
    with contextlib.suppress(Exception):
        yield


#: What the context manager of a hook does that it must not do, by name.
CONTEXTS = {
    "leaves a forward hook": leave_hook,
    "leaves a forward pre-hook": leave_pre_hook,
    "leaves a hook on a gradient": leave_gradient_hook,
    "leaves a forward hook after an error": leave_hook_after_error,
    "leaves another forward": leave_forward,
    "leaves another forward of a class": leave_class_forward,
    "leaves another module": leave_module,
    "removes the hooks of others": remove_hooks,
    "freezes a module while training": freeze_within,
    "leaves a frozen module": freeze_and_leave,
    "scales the weights while training": scale_within,
    "scales the weights at its exit": scale_at_exit,
    "casts the weights at its exit": cast_at_exit,
    "swallows errors": swallow,
    "is no context manager": None,
    "is a generator": None,
}


def context_of(how, model):
    if how == "is no context manager":
        return None
    if how == "is a generator":
        return leave_hook(model)
    return contextlib.contextmanager(CONTEXTS[how])(model)


@dataclass(frozen=True, kw_only=True)
class Noise(Plugin):
    """Noise that changes more than it restores."""

    how: str

    @hookimpl
    def inject_noise(self, model):
        return context_of(self.how, model)


@dataclass(frozen=True, kw_only=True)
class Around(Plugin):
    """A training context that changes more than it restores."""

    how: str

    @hookimpl
    def training_context(self, model):
        return context_of(self.how, model)


@dataclass(frozen=True, kw_only=True)
class Activations(Plugin):
    """Keeps fewer activations, and something else."""

    how: str

    @hookimpl
    def reduce_activations(self, model):
        return context_of(self.how, model)


class NanLoss(HeadLoss):
    def tokens(self, logits_KV, targets_K, gradient):
        losses = super().tokens(logits_KV, targets_K, gradient)
        return losses._replace(losses_K=losses.losses_K * float("nan"))


class ConstantLoss(HeadLoss):
    def tokens(self, logits_KV, targets_K, gradient):
        losses_K = logits_KV.new_ones(len(targets_K))
        return TokenLosses(losses_K, torch.zeros_like(logits_KV) if gradient else None, {})


class WithoutGradient(HeadLoss):
    def tokens(self, logits_KV, targets_K, gradient):
        return super().tokens(logits_KV, targets_K, gradient)._replace(gradient_KV=None)


class MeanLoss(HeadLoss):
    def tokens(self, logits_KV, targets_K, gradient):
        losses = super().tokens(logits_KV, targets_K, gradient)
        return losses._replace(losses_K=losses.losses_K.mean())


class UphillLoss(HeadLoss):
    def tokens(self, logits_KV, targets_K, gradient):
        losses = super().tokens(logits_KV, targets_K, gradient)
        return losses._replace(gradient_KV=-losses.gradient_KV if gradient else None)


#: What a `make_loss` returns that is no loss, by name.
LOSSES = {
    "is NaN": NanLoss,
    "is constant": ConstantLoss,
    "has no gradient": WithoutGradient,
    "is the mean of the tokens": MeanLoss,
    "has the gradient of its negative": UphillLoss,
    "is a function": lambda: torch.nn.functional.cross_entropy,
}


@dataclass(frozen=True, kw_only=True)
class Loss(Plugin):
    """A loss that trains nothing, or not what it says."""

    how: str

    @hookimpl
    def make_loss(self):
        return LOSSES[self.how]()


@dataclass(frozen=True, kw_only=True)
class Loader(Plugin):
    """Loads something else than it was asked for."""

    how: str

    @hookimpl
    def load_model(self, config):
        from transformers import AutoModel, AutoModelForCausalLM

        if self.how == "returns the model's name":
            return config.model.name
        if self.how == "returns a model without a head":
            return AutoModel.from_pretrained(config.model.name)
        if self.how == "returns a plain module":
            return nn.Linear(2, 2)
        return AutoModelForCausalLM.from_pretrained(config.model.name, dtype=torch.bfloat16)


#: What a `load_model` returns that was not asked for.
LOADERS = (
    "returns the model's name",
    "returns a model without a head",
    "returns a plain module",
    "loads in half precision",
)


@dataclass(frozen=True, kw_only=True)
class Resize(Plugin):
    """Says that it has given every token a row, and has not."""

    @hookimpl
    def resize_embeddings(self):
        return True


def freeze_all(model):
    return model.requires_grad_(False)


#: What an `adapt_model` returns that cannot be trained, by name.
ADAPTED = {
    "freezes everything": freeze_all,
    "returns True": lambda model: True,
    "returns the decoder": lambda model: model.model,
}


@dataclass(frozen=True, kw_only=True)
class Adapter(Plugin):
    """Leaves nothing to train."""

    how: str

    @hookimpl
    def adapt_model(self, model):
        return ADAPTED[self.how](model)


class NoCallback:
    pass


#: What `trainer_callbacks` return that are no callbacks, by name.
CALLBACKS = {
    "are objects": lambda: [NoCallback()],
    "are functions": lambda: [print],
    "is a single callback": TrainerCallback,
}


@dataclass(frozen=True, kw_only=True)
class Callbacks(Plugin):
    """Returns what the Trainer cannot call."""

    how: str

    @hookimpl
    def trainer_callbacks(self):
        return CALLBACKS[self.how]()


@dataclass(frozen=True, kw_only=True)
class Harmless(Plugin):
    """A kernel that replaces a forward, as it should."""

    @hookimpl
    def patch_kernels(self, model):
        plain = model.model.norm.forward
        model.model.norm.forward = lambda states: plain(states)


class Failing(TrainerCallback):
    """Fails after the first step."""

    def on_step_end(self, *_, **__):
        raise ZeroDivisionError("a fault of the training")
