"""The keys of LLaMA-Factory (as of 0.9.5, and older names), and what each becomes."""

from __future__ import annotations

from sftkit_commands.init import hf
from sftkit_commands.init.translation import Always, Handled, Lost, Rule, To

NAME = "LLaMA-Factory"
MARKS = ("stage", "finetuning_type", "cutoff_len", "template", "dataset_dir", "lora_target", "lora_rank", "dataset")
INSIDE = ("columns", "tags")
STAGES = ("sft", "pt")

_SPEED = Lost("it changes speed and memory, and not the result")
_METHOD = Lost("sftkit has no plugin for it")
_CACHE = Always("prepared data is cached, in batches and on all cores")
_IMAGES = Always("the processor decides, and it matters for images only")
_INFERENCE = Always("it matters when the model is used, and not in training")
_EXPORT = Lost("a model is exported afterwards", "sftkit export RUN")
_GENERATION = Always("it matters for generated text only")
_RL = Always("it matters in other stages only")
_GALORE = Always("it does nothing by itself")


RULES: dict[str, Rule] = {
    # method
    "stage": Handled("nothing for sft; plugin packing, strategy: wrapped, for pt"),
    "finetuning_type": Handled("plugin peft; plugin freeze for freeze; none for full"),
    "lora_rank": Handled("plugin peft, r"),
    "lora_alpha": Handled("plugin peft, alpha"),
    "lora_dropout": Handled("plugin peft, dropout"),
    "lora_target": Handled("plugin peft, target_modules"),
    "additional_target": Handled("plugin peft, options: modules_to_save"),
    "use_rslora": Handled("plugin peft, options: use_rslora"),
    "use_dora": Handled("plugin peft, options: use_dora"),
    "pissa_init": Handled("plugin peft, options: init_lora_weights"),
    "pissa_iter": Handled("plugin peft, options: init_lora_weights"),
    "pissa_convert": Lost("the adapter is saved as it is"),
    "adapter_name_or_path": Handled("model.name: the adapter is trained further"),
    "adapter_folder": Lost("adapters are named by their directories"),
    "create_new_adapter": Lost(
        "an adapter is not put on another one", "merge the first one: sftkit export RUN --merge"
    ),
    **dict.fromkeys(("use_galore", "use_apollo", "use_badam", "use_adam_mini"), _METHOD),
    "use_muon": Handled("plugin muon"),
    "loraplus_lr_ratio": Handled("plugin optimizer, lora_plus"),
    "loraplus_lr_embedding": Handled("plugin optimizer, groups, if embeddings are adapted"),
    **{f"galore_{x}": _GALORE for x in ("target", "rank", "update_interval", "scale", "proj_type", "layerwise")},
    **{
        f"apollo_{x}": _GALORE
        for x in ("target", "rank", "update_interval", "scale", "proj", "proj_type", "scale_type")
    },
    **{f"apollo_{x}": _GALORE for x in ("layerwise", "scale_front")},
    **{
        f"badam_{x}": _GALORE
        for x in ("mode", "start_block", "switch_mode", "switch_interval", "update_ratio", "mask_mode")
    },
    "badam_verbose": _GALORE,
    **{
        f"freeze_{x}": Handled("plugin freeze, train, for finetuning_type: freeze")
        for x in ("trainable_layers", "trainable_modules", "extra_modules")
    },
    **{f"oft_{x}": Always("it matters for finetuning_type: oft only") for x in ("rank", "block_size", "target")},
    "module_dropout": Always("it matters for finetuning_type: oft only"),
    **dict.fromkeys(("use_llama_pro", "mixture_of_depths", "shift_attn", "use_asft_loss", "use_eaft_loss"), _METHOD),
    **dict.fromkeys(("asft_alpha", "eaft_alpha"), Always("it does nothing by itself")),
    "use_dft_loss": Handled("plugin loss, type: dft"),
    **dict.fromkeys(("use_mca", "use_hyper_parallel", "use_kt", "fp8"), _METHOD),
    **dict.fromkeys(
        ("hyper_parallel_args", "fp8_backend", "fp8_enable_fsdp_float8_all_gather"), Always("it does nothing by itself")
    ),
    **{
        f"freeze_{x}": Always("adapters are put on the language model by default")
        for x in ("vision_tower", "multi_modal_projector")
    },
    "freeze_language_model": Lost("it is not supported", "plugin peft, part: vision"),
    "compute_accuracy": Always("the accuracy of trained tokens is always logged"),
    "disable_shuffling": Handled("train.train_sampling_strategy: sequential"),
    "early_stopping_steps": Handled(hf.STOPS_EARLY),
    "plot_loss": Always("log.jsonl has every value"),
    **dict.fromkeys(("include_effective_tokens_per_second", "print_param_status"), Always("it is always logged")),
    **{f"pref_{x}": _RL for x in ("beta", "ftx", "bco_weight", "loss")},
    **{f"ppo_{x}": _RL for x in ("buffer_size", "epochs", "score_norm", "target", "whiten_rewards")},
    **dict.fromkeys(
        ("kto_chosen_weight", "kto_rejected_weight", "simpo_gamma", "ref_model", "reward_model", "ld_alpha"), _RL
    ),
    **{f"{x}_model_{y}": _RL for x in ("ref", "reward") for y in ("adapters", "quantization_bit", "type")},
    "dpo_label_smoothing": _RL,
    # model
    "model_name_or_path": Handled("model.name"),
    "model_revision": To("model.revision"),
    "trust_remote_code": To("model.trust_remote_code", default=False),
    "cache_dir": Lost("it is an environment variable", "set HF_HOME in the environment"),
    "use_fast_tokenizer": Always("the fast tokenizer is always used"),
    "resize_vocab": Always("the embeddings grow if there are more tokens than rows"),
    "split_special_tokens": Lost("special tokens in the data are read as such"),
    "add_tokens": Handled("plugin chatml, tokens"),
    "add_special_tokens": Handled("plugin chatml, tokens"),
    **dict.fromkeys(
        ("new_special_tokens_config", "init_special_tokens"),
        Lost("new rows start as the mean of the others, with noise", off=("noise_init",)),
    ),
    "low_cpu_mem_usage": Always("transformers always does so"),
    "rope_scaling": Handled("plugin rope_scaling, type"),
    "flash_attn": Handled("plugin flash_attn, or model.options.attn_implementation"),
    "use_unsloth": Handled("plugin unsloth"),
    "use_unsloth_gc": Handled("plugin activations, offload"),
    "enable_liger_kernel": Handled("plugin liger"),
    "moe_aux_loss_coef": Handled("model.options: output_router_logits and the coefficient"),
    "disable_gradient_checkpointing": Handled("train.gradient_checkpointing, which is on by default"),
    "use_reentrant_gc": Handled("train.gradient_checkpointing_kwargs"),
    "upcast_layernorm": Handled("nothing with plugin bitsandbytes, which always does so"),
    "upcast_lmhead_output": Always("the loss is always computed in float32"),
    "train_from_scratch": Handled("model.init: random"),
    "quantization_bit": Handled("plugin bitsandbytes, bits"),
    "quantization_method": Handled("plugin bitsandbytes"),
    "quantization_type": Handled("plugin bitsandbytes, quant_type"),
    "double_quantization": Handled("plugin bitsandbytes, double_quant"),
    "quantization_device_map": Lost("each process trains on its device"),
    "pure_bf16": Handled("model.dtype: bfloat16"),
    **dict.fromkeys(
        ("infer_backend", "infer_dtype", "offload_folder", "use_kv_cache", "vllm_config", "sglang_config"), _INFERENCE
    ),
    **{f"vllm_{x}": _INFERENCE for x in ("maxlen", "gpu_util", "enforce_eager", "max_lora_rank")},
    **{f"sglang_{x}": _INFERENCE for x in ("maxlen", "mem_fraction", "tp_size", "lora_backend")},
    "use_v1_kernels": _SPEED,
    **{f"{x}_hub_token": hf.HUB_TOKEN for x in ("hf", "ms", "om")},
    **{f"image_{x}": _IMAGES for x in ("max_pixels", "min_pixels", "do_pan_and_scan")},
    **{f"video_{x}": Lost("videos are not supported") for x in ("max_pixels", "min_pixels", "fps", "maxlen")},
    "crop_to_patches": _IMAGES,
    **dict.fromkeys(("use_audio_in_video", "audio_sampling_rate"), Lost("audio is not supported")),
    **{f"export_{x}": _EXPORT for x in ("dir", "size", "device", "quantization_bit", "legacy_format", "hub_model_id")},
    **{f"export_quantization_{x}": _EXPORT for x in ("dataset", "nsamples", "maxlen")},
    # data
    "dataset": Handled("data.train or data.mix"),
    "dataset_dir": Handled("the directory of dataset_info.json and the files"),
    "eval_dataset": Handled("data.eval"),
    "media_dir": Lost("images are found relative to the working directory"),
    "template": Handled("plugin chatml, or nothing: the tokenizer's own template"),
    "cutoff_len": To("data.max_length", int, "rows that are longer lose their end, and not parts of prompt and answer"),
    "train_on_prompt": Handled("plugin formats, loss: all"),
    "mask_history": Handled("plugin formats, turns: last"),
    "streaming": To("data.streaming", default=False),
    "buffer_size": Handled("data.shuffle_buffer"),
    "mix_strategy": Handled("data.mix, data.mix_until"),
    "interleave_probs": Handled("data.mix, the weights"),
    "max_samples": Lost("all rows are used", "write the first rows to a file"),
    "val_size": Handled("data.eval"),
    "eval_on_each_dataset": Handled("data.eval, by name"),
    "packing": Handled("plugin packing"),
    "neat_packing": Handled("plugin packing"),
    "ignore_pad_token_for_loss": Always("padding is never trained"),
    "tool_format": Lost("tools are written by the chat template"),
    "default_system": Lost("templates get what the data has", "add a column `system` to the data"),
    "enable_thinking": Handled("data.chat_template_kwargs"),
    "preserve_thinking": Lost("the chat template decides", "plugin formats: {reasoning: each_turn_as_last}"),
    "eval_num_beams": _GENERATION,
    **dict.fromkeys(("overwrite_cache", "preprocessing_batch_size", "preprocessing_num_workers"), _CACHE),
    **dict.fromkeys(("tokenized_path", "data_shared_file_system"), _CACHE),
    # training
    "predict_with_generate": Lost("metrics of generated text are not part of the translation", "sftkit evaluate RUN"),
    **{f"generation_{x}": _GENERATION for x in ("max_length", "num_beams", "config")},
    "sortish_sampler": Lost("there is no such sampler", "train.train_sampling_strategy: group_by_length"),
    **dict.fromkeys(
        ("do_sample", "temperature", "top_p", "top_k", "num_beams", "max_new_tokens", "max_length"), _GENERATION
    ),
    **dict.fromkeys(("repetition_penalty", "length_penalty", "skip_special_tokens"), _GENERATION),
    "use_swanlab": Lost("it is not a tracker of transformers", "train.report_to: swanlab, with the package swanlab"),
    **{
        f"swanlab_{x}": Always("it does nothing by itself")
        for x in ("project", "workspace", "run_name", "mode", "api_key", "logdir")
    },
    **{f"swanlab_lark_{x}": Always("it does nothing by itself") for x in ("webhook_url", "secret")},
    **dict.fromkeys(
        ("ray_num_workers", "ray_init_kwargs", "ray_run_name", "ray_storage_path", "resources_per_worker"),
        Lost("the command says where a run runs", "sftkit launch --on ray --nnodes M --nproc N run sft.yaml"),
    ),
    **dict.fromkeys(
        ("placement_strategy", "ray_storage_filesystem", "master_addr", "master_port"),
        Lost("sftkit launch sets it"),
    ),
    "enable_torch_profiler": Lost("there is no profiler"),
}
#: The keys of an entry of ``dataset_info.json``; those of ``columns`` and ``tags`` are below.
INFO_RULES: dict[str, Rule] = {
    "file_name": Handled("data.train"),
    "hf_hub_url": Handled("data.train"),
    "cloud_file_name": Handled("data.train"),
    "ms_hub_url": Handled("nothing beside hf_hub_url"),
    "om_hub_url": Handled("nothing beside hf_hub_url"),
    "script_url": Lost("data sets with code are not loaded", "use one in a standard format"),
    "formatting": Always("the format is recognised by the columns"),
    "ranking": Handled("nothing if it is false"),
    "subset": Handled("data.subset"),
    "split": Handled("data.split"),
    "folder": Lost("data of the hub is read as a whole", "hf://datasets/OWNER/NAME/FOLDER/* as data.train"),
    "num_samples": Lost("all rows are used", "write the first rows to a file"),
    "file_sha1": Always("files are identified by path, size and time"),
    **{
        f"columns.{x}": Handled("plugin formats, columns")
        for x in ("prompt", "query", "response", "history", "messages", "system", "tools")
    },
    "columns.images": Handled("plugin vision"),
    **{f"columns.{x}": Lost("it is not supported") for x in ("videos", "audios")},
    **{f"columns.{x}": Lost("it is data for training on preferences") for x in ("chosen", "rejected", "kto_tag")},
    **{
        f"tags.{x}_tag": Handled("nothing: the usual names are recognised")
        for x in ("role", "content", "user", "assistant", "observation", "function", "system")
    },
}


def rules() -> dict[str, Rule]:
    """The rules of all keys; those of this tool override those of `TrainingArguments`."""
    return {**hf.training_rules(), **RULES}
