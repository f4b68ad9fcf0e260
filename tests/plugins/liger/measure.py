"""Compares liger's kernels with the layers of transformers and the core's loss, and prints the results as JSON.

A separate program, because Triton uses its interpreter only if TRITON_INTERPRET is set before the import:

    python tests/plugins/liger/measure.py kernels:llama kernels:mixtral,swiglu loss:gemma2 run

Each argument is the name of a function below, followed by a colon and its arguments.
"""

import contextlib
import json
import logging
import sys
import tempfile

import interpreter  # noqa: F401 (before everything that imports triton)
import peft
import torch
import triton.runtime.interpreter as triton_interpreter

import sftkit_plugins.liger.loss
from sftkit import Pipeline
from sftkit.errors import SftkitError
from sftkit.testing import CHATML, plugin_set, tiny_config, tiny_conversations, tiny_model, tiny_tokenizer
from sftkit.training.head import LossHead
from sftkit.training.loss import HeadLoss
from sftkit.training.targets import Targets
from sftkit_plugins.liger import Liger

IDS = torch.arange(3, 27).view(2, 12)
#: What makes tiny models of some types out of their configs.
SIZES = {
    "granite": {"logits_scaling": 6.0, "residual_multiplier": 0.5},
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "cohere": {"logit_scale": 0.3},
}


def model_of(kind, **options):
    return tiny_model(kind, **{**SIZES.get(kind, {}), **options}).train()


def step(model):
    """Loss and gradients of one step."""
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    return loss.item(), gradients(model)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def distance(these, those):
    """The largest difference, relative to the largest gradient."""
    assert these.keys() == those.keys()
    largest = max(gradient.abs().max().item() for gradient in those.values())
    return max((these[name] - those[name]).abs().max().item() for name in those) / largest


@contextlib.contextmanager
def launches():
    """The names of the Triton kernels that run inside."""
    names, call = set(), triton_interpreter.GridExecutor.__call__

    def counted(self, *args, **options):
        names.add(self.fn.__name__)
        return call(self, *args, **options)

    triton_interpreter.GridExecutor.__call__ = counted
    try:
        yield names
    finally:
        triton_interpreter.GridExecutor.__call__ = call


def attributes(model):
    """The attributes of each module, by identity."""
    return [(name, key, id(value)) for name, m in model.named_modules() for key, value in vars(m).items()]


def traces():
    """Names in transformers and torch.nn that belong to liger."""
    found = []
    for name, module in list(sys.modules.items()):
        if name.startswith(("transformers.models.", "torch.nn")) or name == "transformers.activations":
            found += [f"{name}.{key}" for key, value in list(vars(module).items()) if _of_liger(value)]
    from transformers.activations import ACT2FN

    return found + [f"ACT2FN[{key}]" for key, value in dict.items(ACT2FN) if _of_liger(value)]


def _of_liger(value):
    return str(getattr(value, "__module__", "")).startswith("liger_kernel")


def kernels(kind, *off, adapt=lambda model: model):
    """One step with and without the kernels, and any traces of them afterwards and after an exception."""
    options = dict.fromkeys(off, False)
    model = adapt(model_of(kind))
    loss, gradient = step(model)
    before = attributes(model)
    with launches() as names, Liger(**options).training_context(model):
        liger_loss, liger_gradient = step(model)
        made_meanwhile = [type(module).__name__ for module in model_of(kind).modules() if _of_liger(type(module))]
    after = attributes(model)
    with contextlib.suppress(ZeroDivisionError), Liger(**options).training_context(model):
        raise ZeroDivisionError
    plain_loss, plain_gradient = step(adapt(model_of(kind)))
    again_loss, again_gradient = step(model)
    return {
        "loss": abs(liger_loss - loss),
        "gradient": distance(liger_gradient, gradient),
        "launched": sorted(names),
        "made_meanwhile": made_meanwhile,
        "attributes_kept": before == after == attributes(model),
        "traces": traces(),
        "same_model_bitwise": again_loss == loss and distance(again_gradient, gradient) == 0,
        "fresh_model_bitwise": plain_loss == loss and distance(plain_gradient, gradient) == 0,
    }


def adapter(kind):
    """The same, with LoRA (B not zero) on every linear layer."""

    def adapt(model):
        config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        torch.manual_seed(0)
        return peft.get_peft_model(model, config).train()

    return kernels(kind, adapt=adapt)


def whole_norms(kind):
    """The same, with full norms trained in addition to an adapter."""

    def adapt(model):
        config = peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["norm", "input_layernorm"])
        torch.manual_seed(0)
        return peft.get_peft_model(model, config).train()

    return kernels(kind, adapt=adapt)


def norms_as_adapter(kind):
    """The error for an adapter on a norm."""
    model = peft.get_peft_model(model_of(kind), peft.LNTuningConfig(target_modules=["input_layernorm"]))
    return refusal(model, Liger())


def other_activation(kind):
    """The error for a model whose activation function differs from the kernel's."""
    return refusal(model_of(kind, hidden_act="gelu"), Liger())


def refusal(model, plugin):
    before = attributes(model)
    try:
        with plugin.training_context(model):
            return {"error": None}
    except SftkitError as error:
        return {"error": str(error), "attributes_kept": before == attributes(model), "traces": traces()}


def ask(model, loss, weights=None):
    """The summed losses of a batch, divided as in an accumulation window, and the gradients."""
    torch.manual_seed(1)
    labels = IDS.clone()
    labels[:, :4] = labels[1, 9:] = -100
    model.zero_grad()
    head = LossHead(model, loss)
    with head.installed():
        targets = Targets.of(labels, weights)
        total, result, _ = head.ask(model, {"input_ids": IDS, "use_cache": False}, targets)
        (total / 7).backward()
        with torch.no_grad():
            evaluated, _, _ = head.ask(model, {"input_ids": IDS, "use_cache": False}, targets)
    return (total / 7).item(), gradients(model), result, (evaluated / 7).item()


def loss(kind):
    """Liger's two losses compared with the core's, on logits large enough to be capped.

    Without weights in one chunk, and with weights in several.
    """
    found = {}
    limit = sftkit_plugins.liger.loss.CHUNK_BYTES
    for name in ("cross_entropy", "fused_linear_cross_entropy"):
        for weights in (None, torch.linspace(0.1, 1.5, IDS.numel()).view(IDS.shape)):
            sftkit_plugins.liger.loss.CHUNK_BYTES = limit if weights is None else 1
            model = model_of(kind, tie_word_embeddings=False)
            model.get_output_embeddings().weight.data *= 20
            total, gradient, result, _ = ask(model, HeadLoss(), weights)
            with launches() as names:
                liger_total, liger_gradient, liger_result, evaluated = ask(
                    model, liger_loss(model, **{name: True}), weights
                )
            found[name if weights is None else f"{name}, weighted"] = {
                "loss": abs(liger_total - total) / total,
                "evaluated": abs(evaluated - total) / total,
                "tokens": (liger_result.losses_K - result.losses_K).abs().max().item(),
                "gradient": distance(liger_gradient, gradient),
                "accuracy": (liger_result.measures["token_accuracy"] - result.measures["token_accuracy"])
                .abs()
                .sum()
                .item(),
                "launched": sorted(names),
            }
    return found


def liger_loss(model, **options):
    return plugin_set(Liger(**options)).hook.make_loss(model=model, config=tiny_config())


def mixed_precision(kind):
    """The fused loss compared with the core's, for bfloat16 weights and for float32 weights under autocast."""
    found = {}
    for name in ("bfloat16", "autocast"):
        model = model_of(kind)
        if name == "bfloat16":
            model.bfloat16()
        with torch.autocast("cpu", torch.bfloat16) if name == "autocast" else contextlib.nullcontext():
            total, gradient, _, _ = ask(model, HeadLoss())
            liger_total, liger_gradient, _, _ = ask(model, liger_loss(model, fused_linear_cross_entropy=True))
        found[name] = {"loss": abs(liger_total - total), "gradient": distance(liger_gradient, gradient)}
    return found


def adapted_head(kind):
    """A head with LoRA: the plain kernel by default, and the error if the fused loss is requested."""
    config = peft.LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False)
    model = peft.get_peft_model(model_of(kind), config).train()
    total, gradient, _, _ = ask(model, HeadLoss())
    logs = []
    handler = logging.Handler()
    handler.emit = lambda record: logs.append(record.getMessage())
    logging.getLogger("sftkit").addHandler(handler)
    with launches() as names:
        liger_total, liger_gradient, _, _ = ask(model, liger_loss(model))
    try:
        error = str(liger_loss(model, fused_linear_cross_entropy=True))
    except SftkitError as raised:
        error = str(raised)
    return {
        "loss": abs(liger_total - total),
        "gradient": distance(liger_gradient, gradient),
        "launched": sorted(names),
        "logs": logs,
        "error": error,
    }


def run(*plugins):
    """Two runs of a pipeline, with liger and without: their losses, and the models they return."""
    found = []
    for more in ([], ["liger"]):
        with tempfile.TemporaryDirectory() as directory:
            result = Pipeline(
                model=tiny_model("llama"),
                tokenizer=tiny_tokenizer(chat_template=CHATML),
                data=tiny_conversations(2),  # the interpreter takes seconds for each
                eval=tiny_conversations(1),
                plugins=[*plugins, *more, "no:checks"],  # the held-out rows are training rows
                train={
                    "output_dir": directory,
                    "max_steps": 1,
                    "per_device_train_batch_size": 2,
                    "logging_steps": 1,
                    "learning_rate": 1e-2,
                    "use_cpu": True,
                },
            ).run()
        found.append((result.metrics, result.model))
    (metrics, model), (liger_metrics, liger_model) = found
    with torch.no_grad():
        logits, liger_logits = (m.eval()(input_ids=IDS).logits for m in (model, liger_model))
    return {
        "metrics": {name: abs(liger_metrics[name] - metrics[name]) for name in ("train_loss", "eval_loss")},
        "trained": metrics["train_loss"],
        "logits": (logits - liger_logits).abs().max().item(),
        "own_forwards": [n for n, m in liger_model.named_modules() if "forward" in vars(m)],
        "traces": traces(),
    }


if __name__ == "__main__":
    results = {}
    for argument in sys.argv[1:]:
        name, _, rest = argument.partition(":")
        results[argument] = globals()[name](*filter(None, rest.split(",")))
    print(json.dumps(results))
