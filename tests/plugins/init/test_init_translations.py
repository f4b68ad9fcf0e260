"""Configurations as users of Axolotl, LLaMA-Factory and TRL write them, and what `sftkit init --from` makes of each."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from sftkit import Pipeline
from sftkit_commands.init.detect import translate
from sftkit_commands.init.render import yaml_of

HERE = Path(__file__).parent
#: Problems that depend on the machine, and not on the translation.
MACHINE = ("GPU", "needs the package", "CPU", "a single process")
#: File, values of the configuration by path, keys that are not translated, and unknown keys.
CASES = [
    (
        "axolotl/01_lora_alpaca_8bit.yml",
        {
            "model": {"name": "model", "dtype": "bfloat16"},
            "data": {"train": "alpaca.jsonl", "eval": 0.1, "max_length": 4096, "truncation": "drop"},
            "train.gradient_checkpointing_kwargs": {"use_reentrant": False},
            "train.per_device_train_batch_size": 2,
            "train.per_device_eval_batch_size": 2,
            "train.gradient_accumulation_steps": 4,
            "train.num_train_epochs": 4,
            "train.optim": "adamw_bnb_8bit",
            "train.warmup_steps": 10,
            "train.bf16": True,
            "train.eval_strategy": "steps",
            "train.eval_steps": 1 / 16,
            "train.eval_on_start": True,
            "train.save_steps": 0.25,
            "train.save_total_limit": 4,
            "plugins.peft": {"r": 32, "alpha": 16, "dropout": 0.05, "target_modules": "all-linear"},
            "plugins.bitsandbytes": {"bits": 8},
            "plugins.packing": {},
            "plugins.flash_attn": {},
        },
        set(),
        set(),
    ),
    (
        "axolotl/02_qlora_chat_template.yml",
        {
            "data.train": "sharegpt.jsonl",
            "plugins.chatml": {"template": "llama3"},
            "plugins.bitsandbytes": {"bits": 4},
            "plugins.peft.target_modules": ["q_proj", "v_proj"],
            "plugins.peft.options": {"modules_to_save": ["embed_tokens", "lm_head"], "use_rslora": True},
            "train.gradient_checkpointing_kwargs": {"use_reentrant": True},
            "train.warmup_steps": 0.1,
            "train.lr_scheduler_type": "constant_with_warmup",
            "train.learning_rate": 2e-4,
            "train.eval_steps": 20,
            "train.save_steps": 40,
            "train.load_best_model_at_end": True,
            "train.seed": 7,
            "plugins.packing": None,
            "plugins.formats": None,
        },
        set(),
        set(),
    ),
    (
        "axolotl/03_full_fsdp_wandb.yml",
        {
            "data.truncation": "keep_start",
            "data.eval": None,
            "train.gradient_accumulation_steps": 8,
            "train.lr_scheduler_type": "cosine_with_min_lr",
            "train.lr_scheduler_kwargs": {"min_lr_rate": 0.1},
            "train.warmup_steps": 0.03,
            "train.tf32": True,
            "train.save_strategy": "no",
            "train.report_to": ["wandb"],
            "train.run_name": "full-run",
            "plugins.fsdp": {},
            "train.fsdp": None,
            "plugins.packing": {},
            "plugins.peft": None,
        },
        {"wandb_project", "wandb_entity"},
        set(),
    ),
    (
        "axolotl/04_completion_pretraining_texts.yml",
        {
            "data.train": "articles.jsonl",
            "data.eval": 0.01,
            "model.options": {"attn_implementation": "sdpa"},
            "plugins.formats.text_column": "article",
            "plugins.packing": {"eval": True},
            "plugins.neftune": {"alpha": 5},
            "train.max_steps": 200,
            "train.warmup_steps": 6,
            "train.optim": "lion_8bit",
            "train.save_strategy": "steps",
            "train.save_steps": 0.25,
            "train.eval_strategy": "epoch",
            "train.logging_steps": 1,
        },
        set(),
        {"debug"},
    ),
    (
        "axolotl/05_input_output_template_free.yml",
        {
            "data.train": "segments.jsonl",
            "model.dtype": None,
            "model.options": {"attn_implementation": "eager"},
            "train.fp16": True,
            "train.bf16": None,
            "train.save_steps": 0.5,
            "train.lr_scheduler_type": "cosine",
            "plugins.peft.options": {"loftq_config": {"loftq_bits": 4}, "init_lora_weights": "loftq"},
            "plugins.formats": None,
        },
        {"lr_scheduler", "lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"},
        set(),
    ),
    (
        "axolotl/06_user_defined_prompt.yml",
        {
            "data": {"train": "questions.jsonl", "eval": 0.2, "max_length": 512, "truncation": "drop"},
            "plugins": {"formats": {"formatting": "sft_prompts:format_row"}},
            "train.warmup_steps": 2,
            "train.optim": "adafactor",
            "train.eval_strategy": "epoch",
            "train.save_strategy": "epoch",
            "evaluate": {"best": "eval_loss", "patience": 3},
        },
        set(),
        set(),
    ),
    (
        "axolotl/07_several_datasets_liger.yml",
        {
            "data.mix": {"chat.jsonl": 20, "alpaca.jsonl": 20},
            "data.mix_until": "all",
            "data.eval": "chat_eval.jsonl",
            "plugins.chatml": {"template": "chatml", "tokens": ["<tool>"]},
            "plugins.liger": {"swiglu": False, "geglu": False, "fused_linear_cross_entropy": True},
            "plugins.activations": {"checkpointing": "full", "offload": True},
            "train.optim": None,
            "train.lr_scheduler_type": "cosine",
            "train.eval_steps": 0.25,
            "train.save_steps": 0.5,
            "plugins.freeze": {"spectrum": 0.5},
        },
        {"optimizer", "lr_scheduler"},
        set(),
    ),
    (
        "axolotl/08_train_on_inputs_multiturn.yml",
        {
            "plugins.formats.roles": ["system", "developer", "user", "assistant", "tool"],
            "train.train_sampling_strategy": "sequential",
            "train.torch_compile": True,
            "train.report_to": ["mlflow"],
            "plugins.deepspeed": {"stage": 2},
        },
        {
            "datasets[0].train_on_eos",
            "datasets[0].drop_system_message",
            "sequence_parallel_degree",
            "mlflow_tracking_uri",
            "mlflow_experiment_name",
            "dataset_exact_deduplication",
        },
        set(),
    ),
    (
        "axolotl/09_sharegpt_legacy.yml",
        {
            "data.train": "sharegpt.jsonl",
            "plugins.chatml": {"template": "chatml", "tokens": ["<|im_start|>"]},
            "plugins.peft.options": {"use_dora": True},
            "train.train_sampling_strategy": "group_by_length",
            "train.push_to_hub": True,
            "train.hub_model_id": "someone/legacy",
            "train.hub_private_repo": True,
            "train.hub_strategy": "end",
            "plugins.fsdp": None,
        },
        {"eval_max_new_tokens", "special_tokens.bos_token", "special_tokens.unk_token"},
        {"not_a_key_of_axolotl"},
    ),
    (
        "axolotl/10_streaming_alpaca_chat.yml",
        {
            "model": {"name": "model", "revision": "main"},
            "data": {"train": "alpaca.jsonl", "eval": 0.1, "max_length": 512, "truncation": "error"},
            "plugins": {"formats": {"formatting": "sft_prompts:format_row"}, "samples": {"rows": 4}},
            "train.per_device_eval_batch_size": 4,
            "train.warmup_steps": 30,
            "train.optim_args": "beta3=0.999",
            "train.logging_steps": 5,
            "train.dataloader_prefetch_factor": 4,
            "train.gradient_checkpointing": None,
        },
        {"resume_from_checkpoint", "auto_resume_from_checkpoints"},
        set(),
    ),
    (
        "llamafactory/01_lora_sft.yaml",
        {
            "model": {"name": "model", "trust_remote_code": True, "dtype": "bfloat16"},
            "data.train": "alpaca.jsonl",
            "data.eval": 0.1,
            "data.max_length": 2048,
            "plugins.peft": {"r": 8, "target_modules": "all-linear"},
            "plugins.chatml": {"template": "llama3"},
            "plugins.formats.columns": {"instruction": "instruction", "response": "output", "input": "input"},
            "train.warmup_steps": 0.1,
            "train.save_total_limit": "null",
            "train.gradient_checkpointing": True,
            "train.gradient_checkpointing_kwargs": {"use_reentrant": True},
            "train.eval_steps": 500,
        },
        {"max_samples", "overwrite_output_dir"},
        set(),
    ),
    (
        "llamafactory/02_qlora_otfq.yaml",
        {
            "model": {"name": "model"},
            "data": {"train": "sharegpt.jsonl", "max_length": 1024},
            "plugins.bitsandbytes": {"bits": 4, "double_quant": False},
            "plugins.peft.r": 16,
            "plugins.peft.alpha": 64,
            "plugins.peft.target_modules": ["q_proj", "v_proj"],
            "plugins.peft.options": {"modules_to_save": ["embed_tokens", "lm_head"], "use_rslora": True},
            "plugins.formats": {"turns": "last"},
            "plugins.flash_attn": {},
            "train.fp16": True,
            "train.logging_steps": 500,
        },
        set(),
        set(),
    ),
    (
        "llamafactory/03_full_deepspeed.yaml",
        {
            "model.dtype": "bfloat16",
            "data.train": "chat.jsonl",
            "plugins": {"packing": {}, "liger": {}, "neftune": {"alpha": 5}, "deepspeed": {"stage": 3}},
            "train.gradient_checkpointing": None,
            "train.lr_scheduler_kwargs": {"min_lr_rate": 0.1},
            "train.warmup_steps": 20,
            "train.save_total_limit": 3,
        },
        set(),
        set(),
    ),
    (
        "llamafactory/04_several_datasets_interleaved.yaml",
        {
            "data.mix": {"chat.jsonl": 0.7, "sharegpt.jsonl": 0.3},
            "data.mix_until": "all",
            "data.eval": "chat_eval.jsonl",
            "plugins.formats": {"loss": "all"},
            "plugins.chatml": {"template": "template.jinja"},
            "train.gradient_checkpointing_kwargs": {"use_reentrant": False},
            "train.load_best_model_at_end": True,
            "evaluate": {"best": "eval_loss", "patience": 3},
        },
        set(),
        set(),
    ),
    (
        "llamafactory/05_streaming_pretraining.yaml",
        {
            "data.train": "articles.jsonl",
            "data.streaming": True,
            "data.shuffle_buffer": 128,
            "plugins": {"formats": {"text_column": "article"}, "packing": {"strategy": "wrapped", "keep_short": False}},
            "model.dtype": None,
        },
        set(),
        set(),
    ),
    (
        "llamafactory/06_own_columns.json",
        {
            "data.train": "questions.jsonl",
            "plugins.formats.columns": {"instruction": "q", "response": "a", "input": "context"},
            "plugins.peft.r": 8,
            "plugins.peft.alpha": 32,
            "plugins.peft.options": {"use_dora": True, "init_lora_weights": "pissa_niter_4"},
            "train.optim": "adamw_torch",
            "train.train_sampling_strategy": "group_by_length",
            "plugins.optimizer": {"lora_plus": 16.0},
        },
        {"pissa_convert", "default_system", "logging_dir", "hub_token"},
        set(),
    ),
    (
        "llamafactory/07_hub_data_and_freeze.yaml",
        {
            "data.train": "someone/data",
            "data.subset": "en",
            "data.split": "train_sft",
            "data.max_length": 2048,
            "train.report_to": "wandb",
            "train.run_name": "freeze",
            "plugins.rope_scaling": {"type": "yarn"},
            "plugins.peft": None,
            "plugins.freeze": {"train": [r"\.(?:0|1)\."]},
        },
        {
            *("cache_dir", "hf_hub_token", "predict_with_generate", "use_galore", "use_swanlab"),
            *("ray_num_workers", "dataset_info.hub.folder"),
        },
        set(),
    ),
    (
        "llamafactory/08_continue_adapter.yaml",
        {
            "model.name": "adapter",
            "model.options": None,
            "data.eval": 0.25,
            "data.chat_template_kwargs": {"enable_thinking": False},
            "plugins": {"activations": {"checkpointing": "full", "offload": True}, "packing": {"eval": True}},
            "train.eval_strategy": "epoch",
            "train.gradient_checkpointing": None,
        },
        {"video_max_pixels"},
        set(),
    ),
    (
        "llamafactory/09_unsloth.yaml",
        {
            "plugins.unsloth": {"load_in_4bit": True, "r": 32, "lora_alpha": 64, "target_modules": "all-linear"},
            "plugins.chatml": {"template": "template.jinja"},
            "plugins.loss": {"label_smoothing": 0.1},
            "plugins.peft": None,
            "plugins.bitsandbytes": None,
            "train.data_seed": 8,
            "train.gradient_checkpointing": None,
        },
        set(),
        set(),
    ),
    (
        "llamafactory/10_odd_tags_and_unknown.yaml",
        {
            "model.dtype": "auto",
            "data.train": ["sharegpt.jsonl", "missing"],
            "plugins.peft.r": 8,
            "plugins.loss": {"type": "dft"},
            "train.warmup_steps": 0.05,
            "train.train_sampling_strategy": "sequential",
            "train.hub_model_id": None,
        },
        {
            *("dataset", "add_special_tokens", "dataset_info.odd.num_samples"),
            *("dataset_info.odd.tags.user_tag", "dataset_info.odd.tags.role_tag"),
        },
        {"num_train_epoch"},
    ),
    (
        "trl/01_sft_lora.yaml",
        {
            "data": {"train": "chats", "eval": "chats"},
            "plugins.peft.config": {"peft_type": "LORA", "r": 32, "lora_alpha": 16, "lora_dropout": 0.05},
            "plugins.formats": {"loss": "all"},
            "train.bf16": True,
            "train.gradient_checkpointing": True,
            "train.learning_rate": 2e-4,
            "train.eval_strategy": "steps",
        },
        set(),
        set(),
    ),
    (
        "trl/02_command_full.sh",
        {
            "model.name": "model",
            "data": {"train": "chats", "max_length": 512},
            "plugins.packing": {},
            "train.gradient_checkpointing": False,
            "train.warmup_steps": 0.03,
            "train.learning_rate": 2e-5,
            "train.output_dir": "out/model-sft",
            "train.eval_strategy": None,
        },
        {"env.CUDA_VISIBLE_DEVICES", "eos_token"},
        set(),
    ),
    (
        "trl/03_accelerate.sh",
        {
            "model.dtype": "bfloat16",
            "plugins.peft": {"r": 32, "alpha": 16, "dropout": 0.05, "target_modules": ["q_proj", "v_proj"]},
            "plugins.bitsandbytes": {"bits": 4, "double_quant": False},
            "plugins.formats": {"loss": "assistant"},
            "plugins.flash_attn": {},
            "train.seed": 7,
        },
        {"accelerate.config_file", "accelerate.num_processes"},
        set(),
    ),
    (
        "trl/04_mixture.yaml",
        {
            "model.dtype": "bfloat16",
            "model.options": {"initializer_range": 0.03},
            "data.mix": {"chat.jsonl": 20, "sharegpt.jsonl": 20},
            "data.eval": 0.1,
            "data.truncation": "error",
            "data.special_tokens": "none",
            "plugins.loss": {"type": "dft"},
            "plugins.packing": {},
            "plugins.activations": {"checkpointing": "full", "offload": True},
            "train.gradient_checkpointing": None,
        },
        {"max_length", "truncation_mode", "chat_template_path"},
        {"some_unknown_argument"},
    ),
    (
        "trl/05_completions.py",
        {
            "data": {"train": "text.jsonl", "max_length": 256},
            "plugins": {"completion_only": {"response_template": "### Answer:"}},
            "train.per_device_train_batch_size": 8,
            "train.learning_rate": None,
            "train.logging_steps": 500,
        },
        set(),
        set(),
    ),
    (
        "trl/06_qlora.py",
        {
            "model": {"name": "model", "trust_remote_code": True},
            "plugins.peft.config.r": 64,
            "plugins.peft.config.lora_alpha": 16,
            "plugins.peft.config.target_modules": None,
            "plugins.bitsandbytes": {
                "bits": 4, "quant_type": "nf4", "compute_dtype": "float16", "double_quant": False,
            },
            "train.warmup_steps": 0.03,
            "train.train_sampling_strategy": "group_by_length",
            "train.bf16": False,
            "plugins.packing": None,
        },
        set(),
        set(),
    ),
    (
        "trl/07_split_and_map.py",
        {
            "data": {"train": "questions.jsonl", "eval": 0.2},
            "plugins": {"formats": {"loss": "all"}, "packing": {"eval": True}, "neftune": {"alpha": 5}},
            "train.per_device_train_batch_size": 2,
            "train.learning_rate": 1e-5,
            "train.eval_strategy": "epoch",
        },
        {"output_dir", "dataset.map", "callbacks", "formatting_func", "resume_from_checkpoint"},
        set(),
    ),
    (
        "trl/08_unsloth.py",
        {
            "data": {"train": "chat.jsonl", "eval": "chat_eval.jsonl"},
            "plugins.unsloth.load_in_4bit": True,
            "plugins.unsloth.r": 16,
            "plugins.unsloth.max_seq_length": 2048,
            "plugins.unsloth.random_state": 3407,
            "plugins.formats": {"loss": "all"},
            "train.max_steps": 60,
            "train.bf16": None,
        },
        {"unsloth.token"},
        set(),
    ),
    (
        "trl/09_chat_format.py",
        {
            "model": {
                "name": "model", "tokenizer": "plain", "revision": "main", "dtype": "auto",
                "options": {"attn_implementation": "eager"},
            },
            "plugins.chatml": {},
            "plugins.peft.r": 8,
            "plugins.peft.alpha": 32,
            "plugins.peft.dropout": 0.0,
            "plugins.peft.options.init_lora_weights": "pissa",
            "plugins.pad": {"to_multiple_of": 8},
            "plugins.formats": {"loss": "assistant"},
            "train.hub_model_id": None,
        },
        {"dataset_train_split"},
        set(),
    ),
    (
        "trl/10_prompt_completion.yaml",
        {
            "model": {"name": "model", "revision": "main", "dtype": "float32"},
            "data": {"train": "pairs", "max_length": 64},
            "plugins": {"formats": {"loss": "completion"}},
            "train.gradient_checkpointing": True,
            "train.bf16": False,
            "train.eval_strategy": None,
        },
        set(),
        set(),
    ),
]  # fmt: skip


@pytest.fixture
def translated(workdir):
    """Translates one of the files, as it lies in the working directory with its neighbours."""

    def make(name: str):
        source = HERE / name
        for path in source.parent.iterdir():
            shutil.copy(path, workdir)
        return translate(workdir / source.name, workdir)

    return make


def at(values, path):
    """The value of a dotted path; None if there is none, and ``"null"`` for null."""
    for part in path.split("."):
        if not isinstance(values, dict) or part not in values:
            return None
        values = values[part]
    return "null" if values is None else values


@pytest.mark.parametrize(("name", "values", "lost", "unknown"), CASES, ids=[case[0] for case in CASES])
def test_a_users_configuration_becomes_the_same_run(name, values, lost, unknown, translated, workdir):
    t = translated(name)
    text = yaml_of(t, name)
    written = yaml.safe_load(text)
    assert written == t.values
    assert {path: at(written, path) for path in values} == {
        path: pytest.approx(value) if isinstance(value, float) else value for path, value in values.items()
    }
    assert {entry.key for entry in t.of_kind("lost")} == lost
    assert {entry.key for entry in t.of_kind("unknown")} == unknown
    assert list(t.entries) == list(t.given), "each key is in one list"
    comments = text.partition("\nmodel:")[0]
    for entry in (*t.of_kind("lost"), *t.of_kind("unknown"), *t.of_kind("always")):
        assert f"# - {entry.key}:" in comments
    assert "hf_abcdef" not in text
    assert "0123456789abcdef" not in text


@pytest.mark.parametrize("name", [case[0] for case in CASES])
def test_the_translation_is_a_valid_configuration(name, translated, workdir):
    t = translated(name)
    for file, text in {"sft.yaml": yaml_of(t, name), **t.files}.items():
        (workdir / file).write_text(text, encoding="utf-8")
    problems = [str(problem) for problem in Pipeline(config=workdir / "sft.yaml").check()]
    assert [text for text in problems if not any(word in text for word in MACHINE)] == []
