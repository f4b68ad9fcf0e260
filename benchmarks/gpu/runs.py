"""The four ways to train: sftkit, TRL, unsloth, and a plain loop."""

from __future__ import annotations

import json
from typing import Any

from gpu.cases import Spec
from gpu.model import PAD, config_of, model_of, rows_of, saved, tokenizer_of

#: The same for every Trainer. Logging each step costs all of them the same, and yields the losses.
TRAIN: dict[str, Any] = {
    "learning_rate": 1e-4,
    "lr_scheduler_type": "constant",
    "optim": "adamw_torch_fused",
    "train_sampling_strategy": "sequential",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "seed": 0,
    "disable_tqdm": True,
}
LORA: dict[str, Any] = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "bias": "none"}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def train_arguments(spec: Spec, total: int) -> dict[str, Any]:
    """Arguments of a Trainer for ``total`` steps."""
    own = {"per_device_train_batch_size": spec.batch, "max_steps": total}
    return {**TRAIN, **own, "use_cpu": spec.device == "cpu", "output_dir": f"{spec.directory}/run"}


def pipeline(spec: Spec, watch: Any) -> Any:
    """sftkit's run."""
    from sftkit import Pipeline, Plugin, hookimpl
    from sftkit.plugin import dataclass

    @dataclass(frozen=True, kw_only=True)
    class OnDevice(Plugin):
        """Makes the model on the device, without a copy on disk or in main memory."""

        @hookimpl
        def load_model(self, options: Any) -> Any:
            return model_of(spec.shape, spec.device, **options)

    plugins: list[Any] = [OnDevice(), *(["packing"] if spec.packed else []), *spec.plugins]
    if spec.train == "lora":
        plugins.append(f"peft:r={LORA['r']},alpha={LORA['lora_alpha']},dropout=0,target_modules={json.dumps(LINEAR)}")
    directory, vocabulary = f"{spec.directory}/model", spec.shape["vocab_size"]
    config_of(spec.shape).save_pretrained(directory)
    # Adapters are in float32, and compute in bfloat16 only inside autocast; weights in bfloat16 need none.
    half = spec.device == "cuda" and spec.train == "lora"
    return Pipeline(
        model={"name": directory, "init": "random", "dtype": "bfloat16" if spec.device == "cuda" else "float32"},
        data=rows_of(spec.documents, vocabulary),
        tokenizer=tokenizer_of(vocabulary),
        config={"data": {"max_length": spec.max_length, "cache": False}},
        train={**train_arguments(spec, watch.total), "bf16": half},
        plugins=plugins,
        callbacks=[watch],
        overwrite=True,
    )


def run_sftkit(spec: Spec, watch: Any) -> None:
    """sftkit with the plugins of the setting."""
    pipeline(spec, watch).run()


def run_trl(spec: Spec, watch: Any) -> None:
    """TRL's SFTTrainer with its defaults, but for the options of the setting."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    vocabulary = spec.shape["vocab_size"]
    own: dict[str, Any] = {"max_length": spec.max_length, "packing": spec.packed, **spec.options}
    if spec.device == "cpu":
        own["bf16"] = False
    adapters = {}
    if spec.train == "lora":
        from peft import LoraConfig

        adapters = {"peft_config": LoraConfig(task_type="CAUSAL_LM", target_modules=LINEAR, **LORA)}
    SFTTrainer(
        model=model_of(spec.shape, spec.device, **({"attn_implementation": spec.attention} if spec.attention else {})),
        args=SFTConfig(**train_arguments(spec, watch.total), **own),
        train_dataset=Dataset.from_list(rows_of(spec.documents, vocabulary)),
        processing_class=tokenizer_of(vocabulary),
        callbacks=[watch],
        **adapters,
    ).train()


def run_unsloth(spec: Spec, watch: Any) -> None:
    """Unsloth's model in TRL's SFTTrainer."""
    from unsloth import FastLanguageModel  # isort: skip (changes transformers and trl, so comes before them)
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    full = spec.train == "full"
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=saved(spec.shape, f"{spec.directory}/weights", spec.device),
        max_seq_length=spec.max_length,
        load_in_4bit=False,
        full_finetuning=full,
    )
    if not full:
        own = {"target_modules": LINEAR, "use_gradient_checkpointing": "unsloth", "random_state": 0}
        model = FastLanguageModel.get_peft_model(model, **LORA, **own)
    SFTTrainer(
        model=model,
        args=SFTConfig(**train_arguments(spec, watch.total), max_length=spec.max_length, packing=spec.packed),
        train_dataset=Dataset.from_list(rows_of(spec.documents, spec.shape["vocab_size"])),
        processing_class=tokenizer,
        callbacks=[watch],
    ).train()


def run_loop(spec: Spec, watch: Any) -> None:
    """Plain torch on sftkit's rows: logits of trained tokens, mean cross-entropy, clipping, AdamW.

    No trainer and no kernels of anyone: a limit for how little a trainer may add.
    """
    import torch

    rows = pipeline(spec, watch).prepare().data.train
    model = model_of(spec.shape, spec.device).train()
    watch.rows, watch.attention = rows, model.config._attn_implementation
    optimizer = torch.optim.AdamW(model.parameters(), lr=TRAIN["learning_rate"], weight_decay=0.0, fused=True)
    for step in range(watch.total):
        some = [rows[at] for at in range(step * spec.batch, (step + 1) * spec.batch)]
        inputs, targets = _batch(some, spec.device)
        hidden = model.model(**inputs, use_cache=False).last_hidden_state
        trained = targets != -100
        logits = model.lm_head(hidden[trained])
        loss = torch.nn.functional.cross_entropy(logits.float(), targets[trained])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        watch.losses.append(loss.item())
        watch.step()


def _batch(rows: list[Any], device: str) -> tuple[dict[str, Any], Any]:
    """The model's inputs, and the token to predict at each position; -100 where none is trained.

    Packed rows bring positions that restart at each document, which transformers takes as their borders; padding
    behind them is one more document. Other rows get a mask.
    """
    import numpy as np
    import torch

    sizes = [len(row["input_ids"]) for row in rows]
    width, packed = max(sizes), "position_ids" in rows[0]
    ids, targets = np.full((len(rows), width), PAD), np.full((len(rows), width), -100)
    places = np.tile(np.arange(width), (len(rows), 1))
    for at, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        ids[at, :size] = row["input_ids"]
        targets[at, : size - 1] = row["labels"][1:]
        if packed:
            places[at, :size], places[at, size:] = row["position_ids"], np.arange(width - size)
    if packed:
        last = np.roll(places == 0, -1, axis=1)  # the next token belongs to another document
        targets[last] = -100
        more = {"position_ids": places}
    else:
        more = {"attention_mask": (np.arange(width) < np.array(sizes)[:, None]).astype(np.int64)}
    inputs = {"input_ids": ids, **more}
    tensors = {name: torch.from_numpy(values).to(device) for name, values in inputs.items()}
    return tensors, torch.from_numpy(targets).to(device)


KINDS = {"sftkit": run_sftkit, "trl": run_trl, "unsloth": run_unsloth, "loop": run_loop}
