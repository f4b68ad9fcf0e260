"""Whether a run fits the memory of its device, on a model without weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from sftkit.checks.disk import model_config
from sftkit.checks.verdict import Status, Verdict
from sftkit.errors import SftkitError

if TYPE_CHECKING:
    from sftkit.memory import Estimate
    from sftkit.pipeline import Ready

MEND = (
    "lower train.per_device_train_batch_size (and raise train.gradient_accumulation_steps), or use -p activations, "
    "-p peft, train.optim=adamw_bnb_8bit"
)
#: What shares weights or gradients out among devices: the estimate is of one that holds them all.
SHARING = ("fsdp", "deepspeed", "parallelism_config")
#: Bytes that a process has more when it trains: what the Trainer imports, and the threads of its operations.
TO_COME = 150_000_000


def estimate_run(ready: Ready) -> Estimate:
    """The peak of the run's memory.

    Raises:
        Unknown: if it cannot be known before the model is loaded.
    """
    from sftkit.memory import estimate
    from sftkit.memory.batch import largest_batch

    for key in SHARING:
        if ready.config.train.get(key):
            raise Unknown(f"what one process holds under train.{key}")
    batch = largest_batch(ready.data.train, ready.collator, ready.config)
    try:
        model = unloaded_model(ready)
        with as_trained(model, ready, batch):
            return estimate(model, batch, ready.config, more=TO_COME)
    except (SftkitError, Unknown):
        raise
    except Exception as error:  # a model's forward, or a plugin, may raise anything on tensors without data
        first = next(iter(str(error).splitlines()), "")
        raise Unknown(f"it cannot be run without data ({type(error).__name__}: {first})") from error


def memory_verdicts(ready: Ready) -> tuple[list[Verdict], Estimate | None]:
    """Whether the run fits, and the estimate, where there is one."""
    try:
        found = estimate_run(ready)
    except Unknown as error:
        return [Verdict("memory", "ok", f"what the run takes cannot be told before the model is loaded: {error}")], None
    except SftkitError as error:
        return [Verdict("memory", "wrong", f"{p.where}: {p.what}", p.mend) for p in error.problems], None
    status: Status = "wrong" if found.fits is False else "warn" if found.near else "ok"
    return [Verdict("memory", status, found.told(), "" if status == "ok" else MEND)], found


class Unknown(Exception):
    """The memory of a run cannot be known; says why."""


def unloaded_model(ready: Ready) -> Any:
    """The model to train as the run would have it, adapted and with its new tokens, on the meta device.

    Raises:
        Unknown: if its configuration is not here, or a plugin loads it in its own way.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = model_config(ready)
    if config is None:
        raise Unknown(f"there is no configuration of {ready.config.model.name!r} here")
    options = {**ready.config.model.options, **ready.plugins.model_options(ready.config)}
    wanted = config.dtype or "float32" if ready.config.model.dtype == "auto" else ready.config.model.dtype
    options = {name: options[name] for name in ("attn_implementation",) if name in options}
    options["trust_remote_code"] = ready.config.model.trust_remote_code
    with torch.device("meta"):
        dtype = getattr(torch, wanted) if isinstance(wanted, str) else wanted
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, **options)
        tokens = len(ready.tokenizer)
        rows = model.get_input_embeddings().weight.shape[0]
        new = sorted({*ready.vocabulary.new_token_ids, *range(rows, tokens)})
        if tokens > rows:
            model.resize_token_embeddings(tokens, mean_resizing=False)
        adapted = ready.plugins.hook.adapt_model(model=model, config=ready.config, new_token_ids=new)
    return model if adapted is None else adapted


@contextmanager
def as_trained(model: Any, ready: Ready, batch: Any) -> Iterator[None]:
    """The model as it is while training, as far as its memory goes."""
    from sftkit.memory.checkpointing import as_configured

    with ExitStack() as stack:
        stack.enter_context(as_configured(model, ready.config))
        context = ready.plugins.hook.reduce_activations(model=model, config=ready.config, batch=batch)
        if context is not None:
            stack.enter_context(context)
        yield
