"""The arguments of TRL's SFT scripts (as of 1.16, and those of 2024), and what each becomes."""

from __future__ import annotations

from sftkit_commands.init import hf
from sftkit_commands.init.translation import Always, Handled, Lost, Rule, To

NAME = "TRL"
MARKS = ("model_name_or_path", "dataset_name", "use_peft", "lora_target_modules", "dataset_text_field", "max_length")
INSIDE = ("datasets", "env", "model_init_kwargs", "dataset_kwargs")
#: Arguments that only versions of 2024 have: their defaults are others.
OLD = ("max_seq_length", "num_of_sequences", "chars_per_token", "dataset_batch_size", "evaluation_strategy")

_LAUNCH = Lost("processes are started by torchrun", "torchrun --nproc_per_node N --no-python sftkit run sft.yaml")
_CACHE = Always("prepared data is cached, in batches and on all cores")
_OBJECT = Lost("a script's own objects are not part of a configuration", 'Pipeline(config="sft.yaml", ...) in Python')

RULES: dict[str, Rule] = {
    # the model
    "model_name_or_path": Handled("model.name"),
    "model_revision": To("model.revision"),
    "trust_remote_code": To("model.trust_remote_code", default=False),
    "dtype": Handled("model.dtype"),
    "torch_dtype": Handled("model.dtype"),
    "attn_implementation": Handled("plugin flash_attn, or model.options.attn_implementation"),
    "use_flash_attention_2": Handled("plugin flash_attn"),
    "use_peft": Handled("plugin peft"),
    **{f"lora_{x}": Handled("plugin peft") for x in ("r", "alpha", "dropout", "target_modules", "target_parameters")},
    "lora_modules_to_save": Handled("plugin peft, options: modules_to_save"),
    "lora_task_type": Always("the model writes text: CAUSAL_LM"),
    **{f"use_{x}": Handled(f"plugin peft, options: use_{x}") for x in ("rslora", "dora")},
    "load_in_4bit": Handled("plugin bitsandbytes, bits: 4"),
    "load_in_8bit": Handled("plugin bitsandbytes, bits: 8"),
    "bnb_4bit_quant_type": Handled("plugin bitsandbytes, quant_type"),
    "bnb_4bit_quant_storage": Handled("plugin bitsandbytes, quant_storage"),
    "bnb_4bit_use_double_quant": Handled("plugin bitsandbytes, double_quant"),
    "bnb_4bit_compute_dtype": Handled("plugin bitsandbytes, compute_dtype"),
    "use_bnb_nested_quant": Handled("plugin bitsandbytes, double_quant"),
    "router_aux_loss_coef": Handled("model.options"),
    "model_init_kwargs": Handled("model.options"),
    "use_cache": To("train.use_cache"),
    # the data
    "dataset_name": Handled("data.train"),
    "dataset_config": To("data.subset"),
    "dataset_train_split": Handled("data.split"),
    "dataset_test_split": Handled("data.eval"),
    "dataset_streaming": To("data.streaming", default=False),
    "streaming": To("data.streaming", default=False),
    "test_split_size": Handled("data.eval"),
    "ignore_bias_buffers": Always("it works around a problem of GPT-2 with DDP that is gone"),
    "dataset_text_field": Handled("plugin formats, text_column"),
    **dict.fromkeys(("dataset_num_proc", "dataset_batch_size", "num_of_sequences", "chars_per_token"), _CACHE),
    **dict.fromkeys(("dataset_kwargs", "datasets", "env"), Always("it is empty")),
    "dataset_kwargs.skip_prepare_dataset": Always("tokenized rows are recognised"),
    "dataset_kwargs.add_special_tokens": Handled("data.special_tokens"),
    "dataset_kwargs.append_concat_token": Always("a text ends with one EOS"),
    "shuffle_dataset": Always("the order is drawn anew in each epoch"),
    "max_length": Handled("data.max_length"),
    "max_seq_length": Handled("data.max_length"),
    "truncation_mode": Handled("data.truncation"),
    "packing": Handled("plugin packing"),
    "packing_strategy": Handled("plugin packing, strategy"),
    "eval_packing": Handled("plugin packing, eval"),
    "padding_free": Handled("plugin flash_attn"),
    "pad_to_multiple_of": Handled("plugin pad, to_multiple_of"),
    "completion_only_loss": Handled("plugin formats, loss"),
    "assistant_only_loss": Handled("plugin formats, loss"),
    "loss_type": Handled("plugin loss, type"),
    "eos_token": Handled("nothing if the template ends answers with it"),
    "pad_token": Always("padding is recognised by its place, so which token pads makes no difference"),
    "chat_template_path": Handled("plugin chatml, template"),
    "activation_offloading": Handled("plugin activations, offload"),
    # what a script does besides
    "formatting_func": Lost(
        "the script is not run", "move the function to a file prompts.py: formats: {formatting: prompts:FUNCTION}"
    ),
    "data_collator": Handled("plugin completion_only"),
    "tokenizer_name": Handled("model.tokenizer"),
    "chat_format": Handled("plugin chatml"),
    **dict.fromkeys(("callbacks", "compute_metrics", "optimizers", "preprocess_logits_for_metrics"), _OBJECT),
    **dict.fromkeys(("compute_loss_func", "optimizer_cls_and_kwargs", "model_init"), _OBJECT),
    "config": Always("its arguments are read too"),
}
#: Keys of an entry of ``datasets``, a mixture of several.
DATASET_RULES: dict[str, Rule] = {
    "path": Handled("data.train or data.mix"),
    "name": Handled("data.subset"),
    "split": Handled("data.split"),
    "data_files": Handled("data.train"),
    "data_dir": Handled("data.train"),
    "columns": Always("columns that the format does not use are ignored"),
    "fraction": Lost("all rows are used", "write part of the rows to a file"),
}
#: Arguments that are objects of a script.
OBJECTS = (
    *("formatting_func", "callbacks", "compute_metrics", "optimizers", "preprocess_logits_for_metrics"),
    *("compute_loss_func", "optimizer_cls_and_kwargs", "model_init"),
)
LAUNCH = _LAUNCH  # of arguments of accelerate and torchrun


def rules() -> dict[str, Rule]:
    """The rules of all arguments; those of this tool override those of `TrainingArguments`."""
    return {**hf.training_rules(), **RULES}
