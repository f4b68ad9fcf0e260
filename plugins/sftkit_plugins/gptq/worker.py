"""Works on a saved model in its own process: ``python -m sftkit_plugins.gptq.worker TASK MODEL ROWS TARGET``."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

PACKED = 32  # number of inputs and outputs of a layer that the kernels pack together
DROP = "drop plugin gptq; this model cannot be quantized by it"


def check(source: Path, task: dict[str, Any]) -> list[dict[str, str]]:
    """What cannot be quantized in a model, found from its configuration alone.

    Args:
        source: the model's directory.
        task: the settings of the quantizer, and whether the model's own code may run.

    Returns:
        Mappings with ``what`` and ``fix``.
    """
    import torch
    from optimum.gptq import GPTQQuantizer
    from optimum.gptq.utils import get_block_name_with_pattern, get_layers
    from transformers import AutoConfig, AutoModelForCausalLM

    trust = task["trust_remote_code"]
    config = AutoConfig.from_pretrained(source, trust_remote_code=trust)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
    try:
        GPTQQuantizer(**task["settings"], backend="torch").select_quant_linear({"": "cpu"}, pack=True)
        prefix = get_block_name_with_pattern(model)
    except (ValueError, NotImplementedError) as error:
        return [{"what": " ".join(str(error).split()), "fix": DROP}]
    layers = get_layers(model, prefix=prefix)
    found = [] if layers else [{"what": "the model has no linear layers in its blocks", "fix": DROP}]
    for name, layer in layers.items():
        found += layer_problems(name, layer, task["settings"]["group_size"])
    for name, weight in model.named_parameters():
        if name.startswith(prefix) and weight.dim() > 2:
            found.append(
                {"what": f"{name} holds the matrices of several experts, which would not be quantized", "fix": DROP}
            )
    return found


def layer_problems(name: str, layer: Any, group_size: int) -> list[dict[str, str]]:
    """Why a layer cannot be quantized; empty if it can."""
    if type(layer).__name__ != "Linear":
        what = f"{name} is a {type(layer).__name__}, which could not be loaded again once quantized"
        return [{"what": what, "fix": DROP}]
    if layer.in_features % PACKED or layer.out_features % PACKED:
        what = f"{name} is {layer.in_features} by {layer.out_features}, but the kernels need multiples of {PACKED}"
        return [{"what": what, "fix": DROP}]
    if group_size > 0 and layer.in_features % group_size:
        what = f"{name} has {layer.in_features} inputs, which is not divisible by {group_size}"
        return [{"what": what, "fix": "set group_size to a divisor of it"}]
    return []


def quantize(source: Path, task: dict[str, Any], target: Path) -> None:
    """Quantize the model in ``source`` into ``target``."""
    from optimum.gptq import GPTQQuantizer
    from transformers import AutoModelForCausalLM

    trust = task["trust_remote_code"]
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto", use_safetensors=True, trust_remote_code=trust)
    rows = [{"input_ids": [ids], "attention_mask": [[1] * len(ids)]} for ids in task["rows"]]
    # Other kernels change the layout of the weights at their first forward, after which they cannot be saved.
    quantizer = GPTQQuantizer(**task["settings"], dataset=rows, backend="torch")
    quantizer.quantize_model(model)
    quantizer.dataset = None  # it would be saved with the training data in the model's configuration
    model.config.quantization_config = quantizer.to_dict()
    quantizer.save(model, str(target))
    model.config.quantization_config = quantizer.to_dict()  # saving changed the format
    model.config.save_pretrained(target)


def predict(source: Path, task: dict[str, Any], target: Path) -> None:
    """Write the logits of a quantized model on the task's ``probes``, by their number."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, GPTQConfig

    settings = GPTQConfig(bits=task["settings"]["bits"], backend="torch")
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto", quantization_config=settings).eval()
    with torch.inference_mode():
        logits = [model(input_ids=torch.tensor([ids], device=model.device)).logits[0].float() for ids in task["probes"]]
    save_file({str(at): found.cpu().contiguous() for at, found in enumerate(logits)}, target / "logits.safetensors")


def main() -> None:
    """Run the task of the command line; prints findings to standard output as JSON, all else to standard error."""
    name, source, rows, target = sys.argv[1], *map(Path, sys.argv[2:5])
    task = json.loads(rows.read_text(encoding="utf-8"))
    output = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        if name == "quantize":
            quantize(source, task, target)
        elif name == "predict":
            predict(source, task, target)
        found = check(source, task) if name == "check" else []
    output.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
