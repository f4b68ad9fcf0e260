"""The keys of Axolotl (as of 0.19, and older names), and what each becomes."""

from __future__ import annotations

from typing import Any

from sftkit_commands.init import engines, hf
from sftkit_commands.init.translation import Always, Handled, Lost, Rule, To

NAME = "Axolotl"
#: Keys that few other tools have, by which the format is recognised.
MARKS = ("base_model", "micro_batch_size", "sequence_len", "datasets", "adapter", "sample_packing", "val_set_size")
#: Mappings and lists whose parts have rules of their own.
INSIDE = (
    "datasets",
    "test_datasets",
    "pretraining_dataset",
    "special_tokens",
    "plugins",
    "peft",
    "loftq_config",
    "type",
)
#: Training that is not supervised fine-tuning.
OTHER_METHODS = ("rl", "reward_model", "process_reward_model")

_SPEED = Lost("it changes speed and memory, and not the result")
_CLASS = Always("the class follows from the model's own files")
_ENGINE = Lost("it is not supported", "several GPUs: sftkit launch --nproc N run sft.yaml")
_PACKING = Always("documents are packed by best fit over all data")
_CACHE = Always("prepared data is cached, in batches and on all cores")
_CHUNKS = Always("logits are always computed chunk by chunk, for trained tokens only")
_LOGGED = Always("it is always logged")
_METHOD = Lost("sftkit has no plugin for it")
_GENERATION = Lost("samples are generated greedily, by the plugin samples")
_METRICS = Lost("metrics of generated text are not part of the translation", "sftkit evaluate RUN")
_RL = Lost("it belongs to training on preferences or rewards, which sftkit does not do")
_ORIGIN = Lost("the data is read as it is", "write what should be read to a file of its own")


def _number(value: Any) -> float:
    number = float(value)
    return int(number) if number == int(number) else number


RULES: dict[str, Rule] = {
    # model
    "base_model": Handled("model.name"),
    "base_model_config": Handled("nothing if it is the base model"),
    "tokenizer_config": Handled("model.tokenizer"),
    "revision_of_model": To("model.revision"),
    "trust_remote_code": To("model.trust_remote_code", default=False),
    "overrides_of_model_config": Handled("model.options, and plugin rope_scaling"),
    "overrides_of_model_kwargs": Handled("model.options, and plugin rope_scaling"),
    "cls_model_config": _CLASS,
    **dict.fromkeys(("model_type", "type_of_model", "tokenizer_type", "processor_type"), _CLASS),
    **dict.fromkeys(("tokenizer_use_fast", "tokenizer_legacy"), Always("the fast tokenizer is always used")),
    **{f"is_{name}_derived_model": _CLASS for name in ("falcon", "llama", "mistral", "qwen")},
    "tokenizer_use_mistral_common": Lost("tokenizers are those of transformers"),
    "tokenizer_save_jinja_files": Always("the chat template is saved with the tokenizer"),
    "lora_model_dir": Handled("model.name: the adapter is trained further"),
    "hf_use_auth_token": hf.HUB_TOKEN,
    "low_cpu_mem_usage": Always("transformers always does so"),
    "experimental_skip_move_to_device": Always("the trainer moves the model"),
    "reinit_weights": Handled("model.init: random"),
    "use_kernels": _SPEED,
    "rope_scaling": Handled("plugin rope_scaling"),
    "resize_token_embeddings_to_32x": Handled("plugin chatml, pad_to_multiple_of: 32"),
    "mean_resizing_embeddings": Always("new rows start as the mean of the others, with noise"),
    "device_map": Lost("each process trains on its device", "model.options: {device_map: ...}", ("auto",)),
    **dict.fromkeys(("max_memory", "gpu_memory_limit"), Lost("a model is on one device, or sharded")),
    # data
    "sequence_len": To("data.max_length", int),
    "excess_length_strategy": Handled("data.truncation"),
    "chat_template": Handled("plugin chatml"),
    "chat_template_jinja": Handled("plugin chatml, template"),
    "chat_template_kwargs": To("data.chat_template_kwargs"),
    "eot_tokens": Always("the token that closes a turn is found in the template, and trained"),
    "default_system_message": Lost("templates get what the data has", "add a column `system` to the data"),
    "train_on_inputs": Handled("plugin formats, loss: all; in conversations, roles: all of them"),
    "tokens": Handled("plugin chatml, tokens"),
    "added_tokens_overrides": Lost("tokens are not renamed", "change the tokenizer, and name it in model.tokenizer"),
    "val_set_size": Handled("data.eval"),
    "shuffle_merged_datasets": Always("the order is drawn anew in each epoch"),
    "shuffle_before_merging_datasets": Always("the order is drawn anew in each epoch"),
    "streaming": To("data.streaming", default=False),
    "min_sample_len": Lost("short rows are kept", "remove them from the data"),
    "dataset_exact_deduplication": Lost("repeated rows are reported by `sftkit check`, and kept"),
    "push_dataset_to_hub": Lost("prepared data stays on this machine"),
    **dict.fromkeys(("dataset_prepared_path", "dataset_processes", "dataset_num_proc"), _CACHE),
    **dict.fromkeys(("dataset_keep_in_memory", "num_dataset_shards_to_save", "preprocess_iterable"), _CACHE),
    **dict.fromkeys(("dataset_shard_num", "dataset_shard_idx"), _ORIGIN),
    "skip_prepare_dataset": Always("tokenized rows are recognised"),
    # packing and batches
    "sample_packing": Handled("plugin packing"),
    "eval_sample_packing": Handled("plugin packing, eval"),
    "batch_flattening": Handled("plugin flash_attn"),
    "pad_to_sequence_len": Always("padding is not trained; a batch is padded to its longest row"),
    "pad_to_multiple_of": To("plugins.pad.to_multiple_of"),
    **dict.fromkeys(("sample_packing_group_size", "sample_packing_bin_size", "sample_packing_sequentially"), _PACKING),
    **dict.fromkeys(("multipack_real_batches", "sample_packing_eff_est", "sample_packing_mp_start_method"), _PACKING),
    **dict.fromkeys(("streaming_multipack_buffer_size", "pretrain_multipack_buffer_size"), To("data.window", int)),
    "pretrain_multipack_attn": Always("packed documents never attend to each other"),
    "pretraining_sample_concatenation": Handled("plugin packing, strategy: wrapped"),
    "total_num_tokens": Always("tokens are counted"),
    "total_supervised_tokens": Always("tokens are counted"),
    "curriculum_sampling": Handled("train.train_sampling_strategy"),
    "group_by_length": Handled("train.train_sampling_strategy"),
    "micro_batch_size": To("train.per_device_train_batch_size", int),
    "eval_batch_size": To("train.per_device_eval_batch_size", int),
    "batch_size": Handled("train.gradient_accumulation_steps: batch_size / micro_batch_size"),
    "gradient_accumulation_steps": Handled("train.gradient_accumulation_steps"),
    "auto_find_batch_size": Always("a batch that does not fit is halved, with the same gradients"),
    # optimizer and schedule
    "num_epochs": To("train.num_train_epochs", _number),
    "max_steps": To("train.max_steps", int),
    "learning_rate": To("train.learning_rate", _number),
    "weight_decay": To("train.weight_decay", _number),
    "optimizer": Handled("train.optim"),
    "optim_args": Handled("train.optim_args"),
    "optim_target_modules": Handled("train.optim_target_modules"),
    **{name: To(f"train.{name}", _number) for name in ("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm")},
    "lr_scheduler": Handled("train.lr_scheduler_type"),
    "lr_scheduler_kwargs": Handled("train.lr_scheduler_kwargs"),
    "cosine_min_lr_ratio": Handled("train.lr_scheduler_type: cosine_with_min_lr"),
    "warmup_steps": Handled("train.warmup_steps"),
    "warmup_ratio": Handled("train.warmup_steps, as a fraction of all steps"),
    **dict.fromkeys(("cosine_constant_lr_ratio", "lr_quadratic_warmup", "lr_div_factor"), _METHOD),
    **dict.fromkeys(("embedding_lr", "embedding_lr_scale", "lr_groups"), _METHOD),
    "loraplus_lr_ratio": Handled("plugin optimizer, lora_plus"),
    "loraplus_lr_embedding": Handled("plugin optimizer, groups, if embeddings are adapted"),
    **dict.fromkeys(("adam_beta3", "adam_epsilon2", "dion_lr", "dion_momentum", "torchdistx_path"), _METHOD),
    # precision and memory
    "bf16": Handled("train.bf16, and model.dtype"),
    "fp16": Handled("train.fp16"),
    "bfloat16": Handled("train.bf16"),
    "float16": Handled("train.fp16"),
    "float32": Always("it only says that nothing else is used"),
    "tf32": Handled("train.tf32"),
    "gradient_checkpointing": Handled("train.gradient_checkpointing, or plugin activations"),
    "gradient_checkpointing_kwargs": Handled("train.gradient_checkpointing_kwargs"),
    "activation_offloading": Handled("plugin activations, offload"),
    "selective_checkpointing": Handled("plugin activations, checkpointing: selective"),
    "gc_steps": To("train.torch_empty_cache_steps", int),
    "torch_empty_cache_steps": To("train.torch_empty_cache_steps", int),
    **dict.fromkeys(("chunked_cross_entropy", "chunked_cross_entropy_num_chunks", "cut_cross_entropy"), _CHUNKS),
    **dict.fromkeys(("embeddings_skip_upcast", "layer_offloading", "gc_collect_steps", "tiled_mlp"), _SPEED),
    **dict.fromkeys(("tiled_mlp_num_shards", "tiled_mlp_use_original_mlp"), Always("it does nothing by itself")),
    # kernels
    "flash_attention": Handled("plugin flash_attn"),
    "sdp_attention": Handled("model.options.attn_implementation: sdpa"),
    "eager_attention": Handled("model.options.attn_implementation: eager"),
    "flex_attention": Handled("plugin flash_attn, implementation: flex"),
    "attn_implementation": Handled("plugin flash_attn, or model.options.attn_implementation"),
    **dict.fromkeys(("xformers_attention", "sage_attention", "flash_optimum", "sdpa_varlen"), _SPEED),
    "s2_attention": Lost("shifted sparse attention is not supported"),
    **dict.fromkeys(("flash_attn_cross_entropy", "flash_attn_rms_norm", "flash_attn_fuse_qkv"), _SPEED),
    **dict.fromkeys(("flash_attn_fuse_mlp", "fused_attn_kernel", "large_head_attention"), _SPEED),
    **{f"lora_{part}_kernel": _SPEED for part in ("mlp", "qkv", "o", "embedding")},
    **{
        f"unsloth_{part}": _SPEED
        for part in ("cross_entropy_loss", "lora_mlp", "lora_qkv", "lora_o", "rms_norm", "rope")
    },
    **dict.fromkeys(("flex_attn_compile_kwargs", "experts_implementation", "torch_compile_options"), _SPEED),
    "torch_compile": Handled("train.torch_compile"),
    "torch_compile_backend": Handled("train.torch_compile_backend"),
    "torch_compile_mode": Handled("train.torch_compile_mode"),
    **{f"liger_{name}": Handled("plugin liger") for name in ("rope", "rms_norm", "glu_activation", "swiglu")},
    **{
        f"liger_{name}": Handled("plugin liger")
        for name in ("layer_norm", "cross_entropy", "fused_linear_cross_entropy")
    },
    **dict.fromkeys(("liger_rms_norm_gated", "liger_use_token_scaling"), _SPEED),
    # adapter
    "adapter": Handled("plugin peft"),
    "load_in_4bit": Handled("plugin bitsandbytes, bits: 4"),
    "load_in_8bit": Handled("plugin bitsandbytes, bits: 8"),
    "bnb_config_kwargs": Handled("plugin bitsandbytes"),
    "lora_r": Handled("plugin peft, r"),
    "lora_alpha": Handled("plugin peft, alpha"),
    "lora_dropout": Handled("plugin peft, dropout"),
    "lora_target_modules": Handled("plugin peft, target_modules"),
    "lora_target_linear": Handled("plugin peft, target_modules: all-linear"),
    "lora_target_parameters": Handled("plugin peft, target_parameters"),
    **{
        key: Handled(f"plugin peft, options: {name}")
        for key, name in (
            ("lora_modules_to_save", "modules_to_save"),
            ("lora_fan_in_fan_out", "fan_in_fan_out"),
            ("lora_rank_pattern", "rank_pattern"),
            ("lora_alpha_pattern", "alpha_pattern"),
            ("peft_layers_to_transform", "layers_to_transform"),
            ("peft_layers_pattern", "layers_pattern"),
            ("peft_use_dora", "use_dora"),
            ("peft_use_rslora", "use_rslora"),
            ("peft_layer_replication", "layer_replication"),
            ("peft_init_lora_weights", "init_lora_weights"),
            ("peft_trainable_token_indices", "trainable_token_indices"),
            ("peft_ensure_weight_tying", "ensure_weight_tying"),
            ("peft.loftq_config.loftq_bits", "loftq_config"),
        )
    },
    "peft_autocast_adapter_dtype": Lost("adapters are always float32", off=(True,)),
    **dict.fromkeys(("lora_on_cpu", "qlora_sharded_model_loading"), _SPEED),
    **dict.fromkeys(
        ("merge_lora", "merge_method"), Lost("an adapter is merged afterwards", "sftkit export RUN --merge")
    ),
    "gptq": Lost("a GPTQ base is not trained", "use plugin bitsandbytes, or an unquantized base"),
    "unfrozen_parameters": Handled("plugin freeze, train"),
    # saving, evaluation, logs
    "output_dir": To("train.output_dir"),
    "save_steps": Handled("train.save_strategy, train.save_steps"),
    "saves_per_epoch": Handled("train.save_steps, as a fraction of all steps"),
    "save_strategy": Handled("train.save_strategy"),
    "save_total_limit": To("train.save_total_limit", int),
    "save_only_model": To("train.save_only_model"),
    "save_safetensors": Always("weights are always saved as safetensors"),
    "save_first_step": Lost("no checkpoint is saved after the first step"),
    "eval_steps": Handled("train.eval_strategy, train.eval_steps"),
    "evals_per_epoch": Handled("train.eval_steps, as a fraction of all steps"),
    "eval_strategy": Handled("train.eval_strategy"),
    "evaluation_strategy": Handled("train.eval_strategy"),
    "load_best_model_at_end": Handled("train.load_best_model_at_end"),
    "early_stopping_patience": Handled(hf.STOPS_EARLY),
    "metric_for_best_model": To("train.metric_for_best_model"),
    "greater_is_better": To("train.greater_is_better"),
    "logging_steps": To("train.logging_steps"),
    "seed": To("train.seed", int),
    **dict.fromkeys(("include_tokens_per_second", "include_tkps"), _LOGGED),
    "generate_samples": Handled("plugin samples"),
    "num_generation_samples": Handled("plugin samples, rows"),
    "generation_max_new_tokens": Handled("plugin samples, max_new_tokens"),
    **{f"generation_{name}": _GENERATION for name in ("temperature", "top_p", "top_k", "prompt_ratio", "do_sample")},
    **dict.fromkeys(
        ("do_causal_lm_eval", "eval_causal_lm_metrics", "eval_table_size", "eval_max_new_tokens"), _METRICS
    ),
    **dict.fromkeys(("do_bench_eval", "bench_dataset", "bench_split"), _METRICS),
    **dict.fromkeys(("loss_watchdog_threshold", "loss_watchdog_patience"), Lost("there is no limit of the loss")),
    **dict.fromkeys(("profiler_steps", "profiler_steps_start"), Lost("there is no profiler")),
    # hub and trackers
    "hub_model_id": Handled("train.push_to_hub, train.hub_model_id"),
    "hub_strategy": To("train.hub_strategy"),
    "hub_revision": To("train.hub_revision"),
    "use_wandb": Handled("train.report_to: wandb"),
    "wandb_project": Handled("train.report_to: wandb; the environment variable WANDB_PROJECT"),
    "wandb_name": Handled("train.run_name"),
    **{
        f"wandb_{name}": Handled("an environment variable")
        for name in ("entity", "watch", "log_model", "mode", "run_id")
    },
    "use_mlflow": Handled("train.report_to: mlflow"),
    "mlflow_run_name": Handled("train.run_name"),
    **{f"mlflow_{name}": Handled("an environment variable") for name in ("tracking_uri", "experiment_name")},
    "hf_mlflow_log_artifacts": Handled("an environment variable"),
    "use_tensorboard": Handled("train.report_to: tensorboard"),
    "use_comet": Handled("train.report_to: comet_ml"),
    **{
        f"comet_{name}": Handled("an environment variable") for name in ("api_key", "workspace", "project_name", "mode")
    },
    **dict.fromkeys(("comet_experiment_key", "comet_online", "comet_experiment_config"), Lost("Comet reads it itself")),
    "use_trackio": Handled("train.report_to: trackio"),
    "trackio_project_name": To("train.project"),
    "trackio_run_name": Handled("train.run_name"),
    "trackio_space_id": To("train.trackio_space_id"),
    # processes
    **{name: engines.RULES[name] for name in ("deepspeed", "fsdp", "fsdp_config")},
    "fsdp_version": Always("it is always FSDP2"),
    "fsdp_final_state_dict_type": Always("the whole model is saved"),
    **dict.fromkeys(("sequence_parallel_degree", "context_parallel_size"), Lost(_ENGINE.reason, off=(1,))),
    "tensor_parallel_size": Handled("plugin tensor_parallel, size"),
    "dp_shard_size": Handled("plugin fsdp"),
    "dp_replicate_size": Lost(_ENGINE.reason, _ENGINE.fix, (1,)),
    **dict.fromkeys(("heads_k_stride", "ring_attn_func", "deepcompile"), _ENGINE),
    "use_ray": Lost("the command says where a run runs", "sftkit launch --on ray --nnodes M --nproc N run sft.yaml"),
    **dict.fromkeys(
        ("ray_run_name", "ray_num_workers", "resources_per_worker"), Always("it does nothing without use_ray")
    ),
    "ddp_timeout": hf.WAITING,
    **{name: To(f"train.{name}") for name in ("ddp_bucket_cap_mb", "ddp_broadcast_buffers")},
    "ddp_find_unused_parameters": To("train.ddp_find_unused_parameters"),
    **dict.fromkeys(("ddp", "world_size", "local_rank", "device"), Always("torchrun sets it")),
    "accelerator_config": To("train.accelerator_config"),
    **{f"dataloader_{name}": To(f"train.dataloader_{name}") for name in ("pin_memory", "num_workers", "drop_last")},
    "dataloader_prefetch_factor": To("train.dataloader_prefetch_factor"),
    "remove_unused_columns": Always("the collator takes the columns that the model needs"),
    # other techniques
    "neftune_noise_alpha": Handled("plugin neftune, alpha"),
    "noisy_embedding_alpha": Handled("plugin neftune, alpha"),
    **dict.fromkeys(("relora", "relora_prune_ratio", "relora_prune_method", "relora_cpu_offload"), _METHOD),
    "lisa_n_layers": Handled("plugin lisa, layers"),
    "lisa_step_interval": Handled("plugin lisa, interval"),
    "lisa_layers_attribute": Handled("nothing: the layers are found in the model"),
    **dict.fromkeys(("jagged_restart_steps", "jagged_restart_warmup_steps", "jagged_restart_anneal_steps"), _METHOD),
    **dict.fromkeys(("use_pose", "use_eaft", "use_onebitllms", "fp8", "fp8_config", "qat", "quantization"), _METHOD),
    **dict.fromkeys(("eaft_alpha", "eaft_k"), Always("it does nothing without use_eaft")),
    **dict.fromkeys(("fix_untrained_tokens", "shrink_embeddings", "freeze_mm_modules", "trainer_cls"), _METHOD),
    **dict.fromkeys(("dynamic_checkpoint", "model_quantization_config", "llama4_linearized_experts"), _METHOD),
    "spectrum_top_fraction": Handled("plugin freeze, spectrum"),
    "spectrum_model_name": Handled("nothing: ratios are computed from the weights"),
    "lm_eval_tasks": _METHOD,
    **dict.fromkeys(
        ("image_size", "image_resize_algorithm", "processor_kwargs"), Lost("images are resized by the processor")
    ),
    **dict.fromkeys(("trl", "vllm", "orpo_alpha", "simpo_gamma", "cpo_alpha", "rl_beta", "dpo_beta"), _RL),
    **dict.fromkeys(("max_prompt_len", "num_labels", "kto_desirable_weight", "kto_undesirable_weight"), _RL),
    **{
        f"gradio_{name}": Lost("a model is tried in the terminal", "sftkit chat RUN")
        for name in ("title", "share", "server_name", "server_port", "max_new_tokens", "temperature")
    },
    "strict": Always("unknown keys are always errors"),
    "resume_from_checkpoint": hf.RESUME,
    "auto_resume_from_checkpoints": Lost(hf.RESUME.reason, "sftkit run sft.yaml --resume auto"),
    # special tokens, and lists that are empty
    **dict.fromkeys(
        ("special_tokens", "datasets", "test_datasets", "pretraining_dataset", "plugins", "peft"), Always("it is empty")
    ),
    "peft.loftq_config": Always("it is empty"),
    "special_tokens.pad_token": Always("padding is recognised by its place, so which token pads makes no difference"),
    **{
        f"special_tokens.{name}_token": Handled("nothing if the template ends answers with it")
        for name in ("eos", "bos", "unk")
    },
    "special_tokens.additional_special_tokens": Handled("plugin chatml, tokens"),
}
