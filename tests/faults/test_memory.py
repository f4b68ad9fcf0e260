"""Row 10 of the table of faults: a step that runs out of memory."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file

PLUGIN = '''
import torch
from sftkit.api import Plugin, dataclass, hookimpl

@dataclass(frozen=True, kw_only=True)
class Short(Plugin):
    """Runs out of memory in the backward of more than two rows."""

    @hookimpl
    def patch_kernels(self, model, config):
        forward = model.forward

        def limited(*arguments, **options):
            output = forward(*arguments, **options)
            if len(options["input_ids"]) > 2 and torch.is_grad_enabled():
                weight = model.model.layers[0].mlp.down_proj.weight

                def fail(_):
                    handle.remove()
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

                handle = weight.register_hook(fail)
            return output

        model.forward = limited
'''


def test_10_a_split_batch_gives_the_same_weights_and_is_reported_once(start, configure, tmp_path):
    (tmp_path / "short_memory.py").write_text(PLUGIN, encoding="utf-8")
    train = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 2, "optim": "sgd"}
    config = configure(train={**train, "learning_rate": 0.1, "max_grad_norm": 0, "save_steps": 9})
    short = start("run", config, "-o", "short", "-p", "short_memory:Short", "-p", "no:flash_attn")
    whole = start("run", config, "-o", "whole", "-p", "no:flash_attn")
    assert (short.wait(), whole.wait()) == (0, 0), short.output
    (warning,) = [line for line in short.output.splitlines() if "out of memory" in line]
    assert "with 4 rows of" in warning
    assert "computing 2 rows at once from now on, with the same gradients" in warning
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("short", "whole"))
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=0, atol=1e-6)
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("short", "whole")
    ]
    tokens = [[entry["trained_tokens"] for entry in log if "trained_tokens" in entry] for log in logs]
    assert tokens[0] == tokens[1]
