"""Everything that plugins and commands may import from sftkit; the built-in ones import nothing else.

Names are loaded on first use, so importing this module loads neither torch nor transformers; type checkers read
`api.pyi`. `API_VERSION` changes as `docs/api.md` says: the second number when a name or an argument is added, the first
when one is changed or removed.
"""

from __future__ import annotations

import importlib
from typing import Any

#: Module to the names that come from it.
_MODULES = {
    # Writing plugins
    "plugin.base": "Field Plugin dataclass hookimpl",
    "errors": "ConfigError DataError HookError Interrupted OtherProcessError Problem RunError "
    "SftkitError TrainingError nearest warn_caller",
    "plugin.describe": "all_plugins",
    "plugin.paths": "absolute_at",
    "storage": "cache_directory",
    "redact": "hide",
    "plugin.versions": "API_VERSION",
    "plugin.requirements": "has_gpu install_command requirement_problem",
    "config": "DataSection EvaluateSection RunConfig was_loaded",
    "plugin.select": "plugin_from",
    "plugin.selected": "PluginSet",
    "config.evaluation": "smaller_is_better",
    "config.train_fields": "CHECKPOINTING_KEYS allowed_fields evaluates_only train_value",
    "checkpoints.files": "write_text",
    "checkpoints.publish": "new_directory",
    "checkpoints.space": "free_bytes",
    # Data
    "data.documents": "Columns Document DocumentWithAttachment Formatted Formatter Outcome RowError RowFilter Skipped "
    "Span TokenDocument WEIGHT_FIX documents_of is_weight with_documents",
    "data.columns": "ATTACHED Examples IGNORE_INDEX LOSS_WEIGHTS examples_table flatten_column",
    "data.packs": "Packer",
    "data.filtering": "data_batches",
    "data.words": "chosen_columns hash_ngrams texts_of words_of",
    "data.dropped": "DroppedRow",
    "data.token_store": "DocumentKey StoreWriter StoredDocument TokenStore documents_of_row stored_rows",
    "data.counts": "Counts describe_notes note_lines notes_of without_fix without_notes",
    "data.stats": "DatasetStats hash_documents",
    "data.media": "detach_image",
    "data.build": "WEIGHTED_TOKENS",
    "data.pool": "Pool",
    "data.tokenizing.engine": "Tokenize TokenizingEngine",
    "data.problems": "FILTERED",
    "data.processes": "processors",
    "training.collate": "BatchChoice Collator",
    # Models
    "models.adapt": "NEEDS_ADAPTER",
    "models.adapters": "BASE_CONFIG base_of base_options is_adapter",
    "models.choices": "Choices",
    "models.embeddings": "align_special_tokens grow_embeddings table_weights",
    "models.generation": "complete end_token_ids",
    "models.inspect": "autocast_type base_model evaluating has_adapter is_linear layer_stacks linear_names parts_of "
    "position_limit",
    "models.loading": "MODEL_KEYS as_config_error base_configuration load_model load_tokenizer misplaced_options "
    "model_problems",
    "models.quantized": "quantization_of quantization_settings",
    "models.vocabularies": "tokens_by_id vocabulary_difference vocabulary_digest",
    # Training
    "training.loss": "HeadLoss LossResult OutputHead TokenLosses TokenValues at_target chunks minus_target",
    "training.targets": "Targets",
    "training.frozen": "FrozenModel FrozenStates examples_apart",
    "training.trainer": "TokenLossTrainer",
    "training.completions": "Completion HeldOut complete_prompts",
    "training.documents": "difference_from_alone",
    "training.trials": "Trial UnsuitedBatchError document_trials",
    "training.engine": "Engine",
    "training.configured": "OWN_GROUPS configured_optimizer decayed_names",
    "training.groups": "WeightGroup",
    "training.sharded": "ShardedEngine",
    "training.sharding": "dtensor_problems sharding_problems",
    "training.whole": "mesh_device",
    "training.intercept": "replaced_forward",
    "training.arguments": "use_one_device",
    "training.progress": "ProgressCallback",
    # Memory
    "memory": "MemoryEstimate device_of estimate_memory",
    "memory.run": "estimate_run",
    "memory.shape": "ModelShape model_shape",
    "memory.made": "optimizer_groups",
    "memory.unloaded": "UnknownMemoryError model_config",
    "memory.checkpointing": "checkpointed full_checkpointing offloaded_checkpointing selective_checkpointing",
    # Runs
    "ranks": "is_main_process launch_advice rank world_size",
    "run.completing": "completion_problems",
    "trained.derived": "merged_model prepare_again quantize_model quantizer",
    "run.directories": "trained_runs",
    "trained.evaluation": "Evaluation Evaluator base_name",
    "trained.formatted": "SourceFormat prompt_ids source_formats",
    "run.interruption": "interrupt_runs",
    "run.lock": "holder",
    "run.config_file": "WrittenConfig",
    "run.first_rows": "FirstRows",
    "run.manifest": "manifest_of",
    "run.pipeline": "Pipeline",
    "run.preparation": "prepare_to",
    "run.result": "RunResult",
    "run.rows": "TOKEN_KINDS TokenKind TokenPiece TokenRow WEIGHT_MEANING read_batch",
    "run.stages": "PreparedRun Stages Vocabulary",
    "trained.loading": "TrainedModel load_trained read_run",
    "run.verdict": "Status Verdict",
    "run.written": "REPORT REPORT_MARK is_report",
    # Commands
    "cli.common": "JsonOption",
    "cli.completion": "complete_arguments complete_runs",
    "cli.options": "ConfigArguments DTypeOption DataOption DeviceOption ModelOption OutputOption PluginOption "
    "RunArgument TrustOption config_values pipeline_from",
    "cli.within": "run_command",
    "config.assignments": "parse_assignment parse_value split_options split_values",
    "console": "Display console json_text metric_cell metric_name metric_value output printing_json show_data "
    "show_json show_table stage working wrap",
    "testing.conformance": "CheckResult PluginReport check_plugin examine_plugin",
    "units": "size_text",
    "user_modules": "import_user_module",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sftkit.api' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"sftkit.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
