"""Plugins that bring faults into a run; the tests copy this file beside the configuration."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass

from transformers import TrainerCallback

from sftkit.api import Plugin, hookimpl


@dataclass(frozen=True)
class Poison(Plugin):
    """The embeddings of a batch with a token are NaN."""

    token: int = 7

    @hookimpl
    def training_context(self, model, config, rows, collator):
        @contextlib.contextmanager
        def poisoned():
            def spoil(module, arguments, output):
                return output * float("nan") if (arguments[0] == self.token).any() else output

            hook = model.get_input_embeddings().register_forward_hook(spoil)
            yield
            hook.remove()

        return poisoned()


@dataclass(frozen=True)
class Fault(Plugin):
    """Something happens in one process: in a step, in the second batch of an evaluation, or before the training.

    If torchrun starts the processes again, it does not happen again.
    """

    kind: str
    step: int = 3
    process: int = 0

    @hookimpl
    def add_tokens(self, tokenizer, config):
        if self.kind == "preparing":
            os.kill(os.getpid(), signal.SIGTERM)

    @hookimpl
    def patch_kernels(self, model, config):
        if self.kind == "loading":
            os.kill(os.getpid(), signal.SIGTERM)

    @hookimpl
    def trainer_callbacks(self, config):
        return [_Callback(self)]


class _Callback(TrainerCallback):
    def __init__(self, fault):
        self.fault, self.batches = fault, 0

    def on_step_begin(self, args, state, control, **_):
        kind = self.fault.kind
        if args.process_index != self.fault.process or state.global_step != self.fault.step:
            return
        if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
            return
        if kind == "raise":
            raise ValueError("a fault of a plugin")
        if kind == "stall":
            time.sleep(1000)
        if kind == "group":
            os.killpg(0, signal.SIGTERM)
            time.sleep(0.5)  # until torch would notice that a worker has ended
        if kind == "busy":
            until = time.monotonic() + 8
            while time.monotonic() < until:
                pass
        if kind == "twice":
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        if kind.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, kind))

    def on_prediction_step(self, args, state, control, **_):
        self.batches += 1
        if self.fault.kind == "evaluation" and self.batches == 2:
            os.kill(os.getpid(), signal.SIGTERM)
