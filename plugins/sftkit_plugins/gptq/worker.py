"""Quantizes a saved model, or tries whether it could: `python -m sftkit_plugins.gptq.worker TASK MODEL ROWS TARGET`."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

PACKED = 32  # inputs and outputs of a layer that the kernels take together


def check(source: Path, told: dict[str, Any]) -> list[dict[str, str]]:
    """What of a model cannot be quantized, found on its configuration alone.

    Returns:
        Mappings with ``what`` and ``fix``.
    """
    import torch
    from optimum.gptq import GPTQQuantizer
    from optimum.gptq.utils import get_block_name_with_pattern, get_layers
    from transformers import AutoConfig, AutoModelForCausalLM

    trust = told["trust_remote_code"]
    config = AutoConfig.from_pretrained(source, trust_remote_code=trust)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
    drop = "drop plugin gptq: this model cannot be quantized so"
    try:
        GPTQQuantizer(**told["settings"], backend="torch").select_quant_linear({"": "cpu"}, pack=True)
        prefix = get_block_name_with_pattern(model)
    except (ValueError, NotImplementedError) as error:
        return [{"what": " ".join(str(error).split()), "mend": drop}]
    layers = get_layers(model, prefix=prefix)
    found = [] if layers else [{"what": "the model has no linear layers in its blocks", "mend": drop}]
    for name, layer in layers.items():
        found += layer_problems(name, layer, told["settings"]["group_size"])
    for name, weight in model.named_parameters():
        if name.startswith(prefix) and weight.dim() > 2:
            found.append({"what": f"{name} holds the matrices of several experts, and would stay whole", "mend": drop})
    return found


def layer_problems(name: str, layer: Any, group_size: int) -> list[dict[str, str]]:
    """Why one layer cannot be quantized, if it cannot."""
    if type(layer).__name__ != "Linear":
        what = f"{name} is a {type(layer).__name__}, and a quantized one could not be loaded again"
        return [{"what": what, "mend": "drop plugin gptq: this model cannot be quantized so"}]
    if layer.in_features % PACKED or layer.out_features % PACKED:
        what = f"{name} is {layer.in_features} by {layer.out_features}, and the kernels take multiples of {PACKED}"
        return [{"what": what, "mend": "drop plugin gptq: this model cannot be quantized so"}]
    if group_size > 0 and layer.in_features % group_size:
        what = f"{name} has {layer.in_features} inputs, no whole number of groups of {group_size}"
        return [{"what": what, "mend": "set a group_size that divides them"}]
    return []


def quantize(source: Path, told: dict[str, Any], target: Path) -> None:
    """Quantize the model in ``source`` into ``target``."""
    from optimum.gptq import GPTQQuantizer
    from transformers import AutoModelForCausalLM

    trust = told["trust_remote_code"]
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto", use_safetensors=True, trust_remote_code=trust)
    rows = [{"input_ids": [ids], "attention_mask": [[1] * len(ids)]} for ids in told["rows"]]
    # Other kernels lay the weights out anew at their first forward, and could not be saved behind it.
    quantizer = GPTQQuantizer(**told["settings"], dataset=rows, backend="torch")
    quantizer.quantize_model(model)
    quantizer.dataset = None  # or the training data would stand in the model's configuration
    model.config.quantization_config = quantizer.to_dict()
    quantizer.save(model, str(target))
    model.config.quantization_config = quantizer.to_dict()  # saving has changed the format
    model.config.save_pretrained(target)


def main() -> None:
    """Do what the command line says; what is found goes to the standard output as JSON, everything else beside it."""
    task, source, rows, target = sys.argv[1], *map(Path, sys.argv[2:5])
    told = json.loads(rows.read_text(encoding="utf-8"))
    output = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        if task == "quantize":
            quantize(source, told, target)
        found = check(source, told) if task == "check" else []
    output.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
