"""Everything that plugins and commands may import from sftkit; the built-in ones import nothing else.

Names are loaded on first use, so importing this module loads neither torch nor transformers. `API_VERSION` changes as
`docs/api.md` says: the second number when a name or an argument is added, the first when one is changed or removed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sftkit.cli.options import ConfigArguments as ConfigArguments
    from sftkit.cli.options import DataOption as DataOption
    from sftkit.cli.options import ModelOption as ModelOption
    from sftkit.cli.options import OutputOption as OutputOption
    from sftkit.cli.options import PluginOption as PluginOption
    from sftkit.cli.options import pipeline_from as pipeline_from
    from sftkit.config import DataSection as DataSection
    from sftkit.config import RunConfig as RunConfig
    from sftkit.config.train_fields import CHECKPOINTING_KEYS as CHECKPOINTING_KEYS
    from sftkit.config.train_fields import allowed_fields as allowed_fields
    from sftkit.config.train_fields import train_value as train_value
    from sftkit.console import Display as Display
    from sftkit.console import console as console
    from sftkit.console import show_data as show_data
    from sftkit.console import show_table as show_table
    from sftkit.data.build import WEIGHTED_TOKENS as WEIGHTED_TOKENS
    from sftkit.data.columns import ATTACHED as ATTACHED
    from sftkit.data.columns import IGNORE_INDEX as IGNORE_INDEX
    from sftkit.data.columns import LOSS_WEIGHTS as LOSS_WEIGHTS
    from sftkit.data.columns import Examples as Examples
    from sftkit.data.columns import examples_table as examples_table
    from sftkit.data.columns import flatten_column as flatten_column
    from sftkit.data.counts import Counts as Counts
    from sftkit.data.documents import WEIGHT_FIX as WEIGHT_FIX
    from sftkit.data.documents import Columns as Columns
    from sftkit.data.documents import Document as Document
    from sftkit.data.documents import DocumentWithAttachment as DocumentWithAttachment
    from sftkit.data.documents import Formatter as Formatter
    from sftkit.data.documents import RowError as RowError
    from sftkit.data.documents import Skipped as Skipped
    from sftkit.data.documents import Span as Span
    from sftkit.data.documents import is_weight as is_weight
    from sftkit.data.media import detach_image as detach_image
    from sftkit.data.packs import Packer as Packer
    from sftkit.data.stats import DatasetStats as DatasetStats
    from sftkit.data.stats import hash_documents as hash_documents
    from sftkit.errors import ConfigError as ConfigError
    from sftkit.errors import DataError as DataError
    from sftkit.errors import HookError as HookError
    from sftkit.errors import Problem as Problem
    from sftkit.errors import RunError as RunError
    from sftkit.errors import SftkitError as SftkitError
    from sftkit.errors import nearest as nearest
    from sftkit.memory import MemoryEstimate as MemoryEstimate
    from sftkit.memory import device_of as device_of
    from sftkit.memory import estimate_memory as estimate_memory
    from sftkit.memory.checkpointing import checkpointed as checkpointed
    from sftkit.memory.checkpointing import full_checkpointing as full_checkpointing
    from sftkit.memory.checkpointing import offloaded_checkpointing as offloaded_checkpointing
    from sftkit.memory.checkpointing import selective_checkpointing as selective_checkpointing
    from sftkit.memory.run import estimate_run as estimate_run
    from sftkit.memory.unloaded import UnknownMemoryError as UnknownMemoryError
    from sftkit.memory.unloaded import auto_class as auto_class
    from sftkit.memory.unloaded import model_config as model_config
    from sftkit.models.adapt import NEEDS_ADAPTER as NEEDS_ADAPTER
    from sftkit.models.adapters import base_of as base_of
    from sftkit.models.adapters import is_adapter as is_adapter
    from sftkit.models.embeddings import align_special_tokens as align_special_tokens
    from sftkit.models.embeddings import grow_embeddings as grow_embeddings
    from sftkit.models.inspect import autocast_type as autocast_type
    from sftkit.models.inspect import base_model as base_model
    from sftkit.models.inspect import evaluating as evaluating
    from sftkit.models.inspect import has_adapter as has_adapter
    from sftkit.models.inspect import is_linear as is_linear
    from sftkit.models.inspect import linear_names as linear_names
    from sftkit.models.inspect import parts_of as parts_of
    from sftkit.models.loading import MODEL_KEYS as MODEL_KEYS
    from sftkit.models.loading import as_config_error as as_config_error
    from sftkit.models.loading import load_model as load_model
    from sftkit.models.loading import load_tokenizer as load_tokenizer
    from sftkit.models.loading import misplaced_options as misplaced_options
    from sftkit.models.loading import model_problems as model_problems
    from sftkit.models.quantized import quantization_of as quantization_of
    from sftkit.models.quantized import quantization_settings as quantization_settings
    from sftkit.plugin.base import Field as Field
    from sftkit.plugin.base import Plugin as Plugin
    from sftkit.plugin.base import dataclass as dataclass
    from sftkit.plugin.base import hookimpl as hookimpl
    from sftkit.plugin.requirements import has_gpu as has_gpu
    from sftkit.plugin.requirements import install_command as install_command
    from sftkit.plugin.requirements import requirement_problem as requirement_problem
    from sftkit.plugin.selected import PluginSet as PluginSet
    from sftkit.run.distributed import is_main_process as is_main_process
    from sftkit.run.distributed import rank as rank
    from sftkit.run.distributed import world_size as world_size
    from sftkit.run.pipeline import Pipeline as Pipeline
    from sftkit.run.pipeline import RunResult as RunResult
    from sftkit.run.stages import PreparedRun as PreparedRun
    from sftkit.run.stages import Stages as Stages
    from sftkit.run.stages import Vocabulary as Vocabulary
    from sftkit.run.verdict import Status as Status
    from sftkit.run.verdict import Verdict as Verdict
    from sftkit.training.arguments import use_one_device as use_one_device
    from sftkit.training.collate import Collator as Collator
    from sftkit.training.loss import HeadLoss as HeadLoss
    from sftkit.training.loss import LossResult as LossResult
    from sftkit.training.loss import OutputHead as OutputHead
    from sftkit.training.loss import TokenLosses as TokenLosses
    from sftkit.training.loss import at_target as at_target
    from sftkit.training.loss import minus_target as minus_target
    from sftkit.training.progress import ProgressCallback as ProgressCallback
    from sftkit.training.trainer import TokenLossTrainer as TokenLossTrainer

API_VERSION = "1.0"

#: Module to the names that come from it.
_MODULES = {
    # Writing plugins
    "plugin.base": "Field Plugin dataclass hookimpl",
    "errors": "ConfigError DataError HookError Problem RunError SftkitError nearest",
    "plugin.requirements": "has_gpu install_command requirement_problem",
    "config": "DataSection RunConfig",
    "plugin.selected": "PluginSet",
    "config.train_fields": "CHECKPOINTING_KEYS allowed_fields train_value",
    # Data
    "data.documents": "Columns Document DocumentWithAttachment Formatter RowError Skipped Span WEIGHT_FIX is_weight",
    "data.columns": "ATTACHED Examples IGNORE_INDEX LOSS_WEIGHTS examples_table flatten_column",
    "data.packs": "Packer",
    "data.counts": "Counts",
    "data.stats": "DatasetStats hash_documents",
    "data.media": "detach_image",
    "data.build": "WEIGHTED_TOKENS",
    "training.collate": "Collator",
    # Models
    "models.adapt": "NEEDS_ADAPTER",
    "models.adapters": "base_of is_adapter",
    "models.embeddings": "align_special_tokens grow_embeddings",
    "models.inspect": "autocast_type base_model evaluating has_adapter is_linear linear_names parts_of",
    "models.loading": "MODEL_KEYS as_config_error load_model load_tokenizer misplaced_options model_problems",
    "models.quantized": "quantization_of quantization_settings",
    # Training
    "training.loss": "HeadLoss LossResult OutputHead TokenLosses at_target minus_target",
    "training.trainer": "TokenLossTrainer",
    "training.arguments": "use_one_device",
    "training.progress": "ProgressCallback",
    # Memory
    "memory": "MemoryEstimate device_of estimate_memory",
    "memory.run": "estimate_run",
    "memory.unloaded": "UnknownMemoryError auto_class model_config",
    "memory.checkpointing": "checkpointed full_checkpointing offloaded_checkpointing selective_checkpointing",
    # Runs
    "run.distributed": "is_main_process rank world_size",
    "run.pipeline": "Pipeline RunResult",
    "run.stages": "PreparedRun Stages Vocabulary",
    "run.verdict": "Status Verdict",
    # Commands
    "cli.options": "ConfigArguments DataOption ModelOption OutputOption PluginOption pipeline_from",
    "console": "Display console show_data show_table",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = ["API_VERSION", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sftkit.api' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"sftkit.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
