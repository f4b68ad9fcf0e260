"""Runs the plugin unsloth with the real package, and prints the results as JSON.

This is a separate program, because unsloth must be imported before transformers, patches it for the rest of the
process, and needs its own environment. Without a GPU, unsloth trains with a CPU backend that has the same interface;
only sftkit's check for a GPU is replaced:

    python tests/plugins/unsloth/measure.py train new_tokens

`signatures` imports the code for GPUs instead, as unsloth's own tests do without a GPU, and trains nothing.
"""

import inspect
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import sftkit.plugin.registry
from sftkit import Pipeline
from sftkit.errors import SftkitError
from sftkit.plugin.select import Choice, select
from sftkit.testing import CHATML, run_problems, tiny_config, tiny_conversations, tiny_model, tiny_tokenizer
from sftkit_plugins.unsloth import Unsloth

sftkit.plugin.registry.has_gpu = lambda: True

TRAIN = {"max_steps": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "logging_steps": 1}
TRAIN |= {"learning_rate": 1e-2, "use_cpu": True}
PLAIN = {"dtype": "float32", "use_gradient_checkpointing": False}


def save_model(directory):
    """A tiny model with its tokenizer, saved by a separate process, because this imports transformers."""
    if "unsloth" not in sys.modules:
        program = f"import measure; measure.save_here({str(directory)!r})"
        subprocess.run([sys.executable, "-c", program], check=True, stdout=2, cwd=Path(__file__).parent)
    else:
        save_here(directory)
    return str(directory)


def save_here(directory):
    tiny_model("llama").save_pretrained(directory)
    tiny_tokenizer(chat_template=CHATML).save_pretrained(directory)


def run(model, output, *plugins, **train):
    """The result of a run, and its losses."""
    result = Pipeline(
        model=model,
        data=tiny_conversations(8),
        plugins=list(plugins),
        train={**TRAIN, "output_dir": str(output), **train},
    ).run()
    lines = (Path(output) / "log.jsonl").read_text().splitlines()
    return result, [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]


def logits(model):
    import torch

    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(3, 27).view(2, 12)).logits


def train():
    """LoRA with unsloth and with peft from the same seed, and unsloth's adapter reloaded by peft alone."""
    with tempfile.TemporaryDirectory() as directory:
        model = save_model(Path(directory, "model"))
        result, losses = run(model, Path(directory, "run"), Unsloth(r=8, **PLAIN))
        import unsloth
        from peft import AutoPeftModelForCausalLM
        from transformers import Trainer

        _, peft_losses = run(model, Path(directory, "peft"), "peft:r=8,alpha=16")
        reloaded = AutoPeftModelForCausalLM.from_pretrained(str(result.directory))
        adapter = result.model.peft_config["default"]
        again, _ = run(str(result.directory), Path(directory, "again"), Unsloth(**PLAIN), max_steps=1)
        return {
            "version": unsloth.__version__,
            "losses": losses,
            "peft_losses": peft_losses,
            "rank": adapter.r,
            "target_modules": sorted(adapter.target_modules),
            "reloaded": (logits(result.model) - logits(reloaded)).abs().max().item(),
            "further_rank": again.model.peft_config["default"].r,
            "rewritten": [n for n, value in vars(Trainer).items() if "unsloth_get" in getattr(value, "__name__", "")],
        }


def new_tokens():
    """A run with new tokens, and one that trains every weight."""
    with tempfile.TemporaryDirectory() as directory:
        model = save_model(Path(directory, "model"))
        result, losses = run(model, Path(directory, "run"), Unsloth(r=8, **PLAIN), "chatml")
        whole, whole_losses = run(model, Path(directory, "whole"), Unsloth(full_finetuning=True, **PLAIN))
        trained = [name for name, p in result.model.named_parameters() if p.requires_grad]
        return {
            "losses": losses,
            "trained_in_full": [name for name in trained if "lora" not in name],
            "rows": result.model.get_input_embeddings().weight.shape[0],
            "tokens": len(result.tokenizer),
            "whole_losses": whole_losses,
            "all_trained": all(p.requires_grad for p in whole.model.parameters()),
            "has_adapter": hasattr(whole.model, "peft_config"),
        }


def refusals():
    """Errors for options that only the installed package can check, and for a model that unsloth did not load."""
    import unsloth  # noqa: F401

    found = [str(problem) for problem in run_problems(Unsloth(options={"lora_droput": 0.1, "r": 4}))]
    known = {"use_dora": True, "layers_pattern": "layers"}
    found += [str(problem) for problem in run_problems(Unsloth(options=known))]
    for plugin, call in (
        (Unsloth(), lambda p: p.load_model(tiny_config(), {"attn_implementation": "eager"})),
        (Unsloth(), lambda p: p.load_model(tiny_config(model={"name": "/no/such/model"}), {})),
        (Unsloth(), lambda p: p.adapt_model(tiny_model("llama"), tiny_config(), [])),
    ):
        try:
            call(plugin)
            found.append("nothing")
        except SftkitError as error:
            found.append(str(error))
    return found


def conflicts():
    """The problem if plugin peft is selected too."""
    _, problems = select([Choice("unsloth", instance=Unsloth()), Choice("peft")])
    return [str(problem) for problem in problems if "together" in str(problem)]


def signatures():
    """The plugin's arguments, bound to the functions for GPUs; and the Trainer, restored."""
    os.environ["UNSLOTH_ALLOW_CPU"] = "1"
    from unsloth import FastLanguageModel

    from sftkit_plugins.unsloth import MODES, _trainer_kept, adapter_arguments

    plugin = Unsloth(modules_to_save=["lm_head"], layers_to_transform=[0], loftq_config={}, target_modules=["q_proj"])
    loading = plugin._loading_arguments(tiny_config())
    adapting = plugin._adapter_arguments(tiny_config(), [3])
    load = inspect.signature(FastLanguageModel.from_pretrained)
    adapt = inspect.signature(FastLanguageModel.get_peft_model)
    load.bind(**loading)
    adapt.bind(None, **adapting)

    from transformers import Trainer
    from unsloth.models._utils import patch_gradient_accumulation_fix

    before = dict(vars(Trainer))
    with _trainer_kept():
        patch_gradient_accumulation_fix(Trainer)
        rewritten = sorted(name for name, value in vars(Trainer).items() if before.get(name) is not value)
    return {
        "class": f"{FastLanguageModel.__mro__[1].__module__}",
        "unknown_to_loader": sorted(set(loading) - set(load.parameters)),
        "unknown_to_adapter": sorted(set(adapting) - set(adapt.parameters)),
        "known_modes": [name for name in MODES if name in load.parameters],
        "known": sorted(adapter_arguments() & {"use_dora", "qat_scheme", "finetune_last_n_layers", "layers_pattern"}),
        "rewritten": rewritten,
        "restored": dict(vars(Trainer)) == before,
    }


if __name__ == "__main__":
    results = {argument: globals()[argument]() for argument in sys.argv[1:]}
    print(json.dumps(results))
