from sftkit.checkpoints.files import write_text as write_text
from sftkit.checkpoints.publish import new_directory as new_directory
from sftkit.checkpoints.space import free_bytes as free_bytes
from sftkit.cli.common import JsonOption as JsonOption
from sftkit.cli.completion import complete_arguments as complete_arguments, complete_runs as complete_runs
from sftkit.cli.options import (
    ConfigArguments as ConfigArguments,
    DataOption as DataOption,
    DeviceOption as DeviceOption,
    DTypeOption as DTypeOption,
    ModelOption as ModelOption,
    OutputOption as OutputOption,
    PluginOption as PluginOption,
    RunArgument as RunArgument,
    TrustOption as TrustOption,
    config_values as config_values,
    pipeline_from as pipeline_from,
)
from sftkit.cli.within import run_command as run_command
from sftkit.config import (
    DataSection as DataSection,
    EvaluateSection as EvaluateSection,
    RunConfig as RunConfig,
    was_loaded as was_loaded,
)
from sftkit.config.assignments import (
    parse_assignment as parse_assignment,
    parse_value as parse_value,
    split_options as split_options,
    split_values as split_values,
)
from sftkit.config.evaluation import smaller_is_better as smaller_is_better
from sftkit.config.train_fields import (
    CHECKPOINTING_KEYS as CHECKPOINTING_KEYS,
    allowed_fields as allowed_fields,
    evaluates_only as evaluates_only,
    train_value as train_value,
)
from sftkit.console import (
    Display as Display,
    console as console,
    json_text as json_text,
    metric_cell as metric_cell,
    metric_name as metric_name,
    metric_value as metric_value,
    output as output,
    printing_json as printing_json,
    show_data as show_data,
    show_json as show_json,
    show_table as show_table,
    stage as stage,
    working as working,
    wrap as wrap,
)
from sftkit.data.build import WEIGHTED_TOKENS as WEIGHTED_TOKENS
from sftkit.data.columns import (
    ATTACHED as ATTACHED,
    IGNORE_INDEX as IGNORE_INDEX,
    LOSS_WEIGHTS as LOSS_WEIGHTS,
    Examples as Examples,
    examples_table as examples_table,
    flatten_column as flatten_column,
)
from sftkit.data.counts import (
    Counts as Counts,
    describe_notes as describe_notes,
    note_lines as note_lines,
    notes_of as notes_of,
    without_fix as without_fix,
    without_notes as without_notes,
)
from sftkit.data.documents import (
    WEIGHT_FIX as WEIGHT_FIX,
    Columns as Columns,
    Document as Document,
    DocumentWithAttachment as DocumentWithAttachment,
    Formatted as Formatted,
    Formatter as Formatter,
    Outcome as Outcome,
    RowError as RowError,
    RowFilter as RowFilter,
    Skipped as Skipped,
    Span as Span,
    TokenDocument as TokenDocument,
    documents_of as documents_of,
    is_weight as is_weight,
    with_documents as with_documents,
)
from sftkit.data.dropped import DroppedRow as DroppedRow
from sftkit.data.filtering import data_batches as data_batches
from sftkit.data.media import detach_image as detach_image
from sftkit.data.packs import Packer as Packer
from sftkit.data.pool import Pool as Pool
from sftkit.data.problems import FILTERED as FILTERED
from sftkit.data.processes import processors as processors
from sftkit.data.stats import DatasetStats as DatasetStats, hash_documents as hash_documents
from sftkit.data.token_store import (
    DocumentKey as DocumentKey,
    StoredDocument as StoredDocument,
    StoreWriter as StoreWriter,
    TokenStore as TokenStore,
    documents_of_row as documents_of_row,
    stored_rows as stored_rows,
)
from sftkit.data.tokenizing.engine import Tokenize as Tokenize, TokenizingEngine as TokenizingEngine
from sftkit.data.words import (
    chosen_columns as chosen_columns,
    hash_ngrams as hash_ngrams,
    texts_of as texts_of,
    words_of as words_of,
)
from sftkit.errors import (
    ConfigError as ConfigError,
    DataError as DataError,
    HookError as HookError,
    Interrupted as Interrupted,
    OtherProcessError as OtherProcessError,
    Problem as Problem,
    RunError as RunError,
    SftkitError as SftkitError,
    TrainingError as TrainingError,
    nearest as nearest,
    warn_caller as warn_caller,
)
from sftkit.memory import (
    MemoryEstimate as MemoryEstimate,
    device_of as device_of,
    estimate_memory as estimate_memory,
)
from sftkit.memory.checkpointing import (
    checkpointed as checkpointed,
    full_checkpointing as full_checkpointing,
    offloaded_checkpointing as offloaded_checkpointing,
    selective_checkpointing as selective_checkpointing,
)
from sftkit.memory.made import optimizer_groups as optimizer_groups
from sftkit.memory.run import estimate_run as estimate_run
from sftkit.memory.shape import ModelShape as ModelShape, model_shape as model_shape
from sftkit.memory.unloaded import (
    UnknownMemoryError as UnknownMemoryError,
    model_config as model_config,
)
from sftkit.models.adapt import NEEDS_ADAPTER as NEEDS_ADAPTER
from sftkit.models.adapters import (
    BASE_CONFIG as BASE_CONFIG,
    base_of as base_of,
    base_options as base_options,
    is_adapter as is_adapter,
)
from sftkit.models.choices import Choices as Choices
from sftkit.models.embeddings import (
    align_special_tokens as align_special_tokens,
    grow_embeddings as grow_embeddings,
    table_weights as table_weights,
)
from sftkit.models.generation import complete as complete, end_token_ids as end_token_ids
from sftkit.models.inspect import (
    autocast_type as autocast_type,
    base_model as base_model,
    evaluating as evaluating,
    has_adapter as has_adapter,
    is_linear as is_linear,
    layer_stacks as layer_stacks,
    linear_names as linear_names,
    parts_of as parts_of,
    position_limit as position_limit,
)
from sftkit.models.loading import (
    MODEL_KEYS as MODEL_KEYS,
    as_config_error as as_config_error,
    base_configuration as base_configuration,
    load_model as load_model,
    load_tokenizer as load_tokenizer,
    misplaced_options as misplaced_options,
    model_problems as model_problems,
)
from sftkit.models.quantized import (
    quantization_of as quantization_of,
    quantization_settings as quantization_settings,
)
from sftkit.models.vocabularies import (
    tokens_by_id as tokens_by_id,
    vocabulary_difference as vocabulary_difference,
    vocabulary_digest as vocabulary_digest,
)
from sftkit.plugin.base import Field as Field, Plugin as Plugin, dataclass as dataclass, hookimpl as hookimpl
from sftkit.plugin.describe import all_plugins as all_plugins
from sftkit.plugin.paths import absolute_at as absolute_at
from sftkit.plugin.requirements import (
    has_gpu as has_gpu,
    install_command as install_command,
    requirement_problem as requirement_problem,
)
from sftkit.plugin.select import plugin_from as plugin_from
from sftkit.plugin.selected import PluginSet as PluginSet
from sftkit.plugin.versions import API_VERSION as API_VERSION
from sftkit.ranks import (
    is_main_process as is_main_process,
    launch_advice as launch_advice,
    rank as rank,
    world_size as world_size,
)
from sftkit.redact import hide as hide
from sftkit.run.completing import completion_problems as completion_problems
from sftkit.run.config_file import WrittenConfig as WrittenConfig
from sftkit.run.directories import trained_runs as trained_runs
from sftkit.run.first_rows import FirstRows as FirstRows
from sftkit.run.interruption import interrupt_runs as interrupt_runs
from sftkit.run.lock import holder as holder
from sftkit.run.manifest import manifest_of as manifest_of
from sftkit.run.pipeline import Pipeline as Pipeline
from sftkit.run.preparation import prepare_to as prepare_to
from sftkit.run.result import RunResult as RunResult
from sftkit.run.rows import (
    TOKEN_KINDS as TOKEN_KINDS,
    WEIGHT_MEANING as WEIGHT_MEANING,
    TokenKind as TokenKind,
    TokenPiece as TokenPiece,
    TokenRow as TokenRow,
    read_batch as read_batch,
)
from sftkit.run.stages import PreparedRun as PreparedRun, Stages as Stages, Vocabulary as Vocabulary
from sftkit.run.verdict import Status as Status, Verdict as Verdict
from sftkit.run.written import REPORT as REPORT, REPORT_MARK as REPORT_MARK, is_report as is_report
from sftkit.storage import cache_directory as cache_directory
from sftkit.testing.conformance import (
    CheckResult as CheckResult,
    PluginReport as PluginReport,
    check_plugin as check_plugin,
    examine_plugin as examine_plugin,
)
from sftkit.trained.derived import (
    merged_model as merged_model,
    prepare_again as prepare_again,
    quantize_model as quantize_model,
    quantizer as quantizer,
)
from sftkit.trained.evaluation import Evaluation as Evaluation, Evaluator as Evaluator, base_name as base_name
from sftkit.trained.formatted import (
    SourceFormat as SourceFormat,
    prompt_ids as prompt_ids,
    source_formats as source_formats,
)
from sftkit.trained.loading import TrainedModel as TrainedModel, load_trained as load_trained, read_run as read_run
from sftkit.training.arguments import use_one_device as use_one_device
from sftkit.training.collate import BatchChoice as BatchChoice, Collator as Collator
from sftkit.training.completions import (
    Completion as Completion,
    HeldOut as HeldOut,
    complete_prompts as complete_prompts,
)
from sftkit.training.configured import (
    OWN_GROUPS as OWN_GROUPS,
    configured_optimizer as configured_optimizer,
    decayed_names as decayed_names,
)
from sftkit.training.documents import difference_from_alone as difference_from_alone
from sftkit.training.engine import Engine as Engine
from sftkit.training.frozen import (
    FrozenModel as FrozenModel,
    FrozenStates as FrozenStates,
    examples_apart as examples_apart,
)
from sftkit.training.groups import WeightGroup as WeightGroup
from sftkit.training.intercept import replaced_forward as replaced_forward
from sftkit.training.loss import (
    HeadLoss as HeadLoss,
    LossResult as LossResult,
    OutputHead as OutputHead,
    TokenLosses as TokenLosses,
    TokenValues as TokenValues,
    at_target as at_target,
    chunks as chunks,
    minus_target as minus_target,
)
from sftkit.training.progress import ProgressCallback as ProgressCallback
from sftkit.training.sharded import ShardedEngine as ShardedEngine
from sftkit.training.sharding import dtensor_problems as dtensor_problems, sharding_problems as sharding_problems
from sftkit.training.targets import Targets as Targets
from sftkit.training.trainer import TokenLossTrainer as TokenLossTrainer
from sftkit.training.trials import (
    Trial as Trial,
    UnsuitedBatchError as UnsuitedBatchError,
    document_trials as document_trials,
)
from sftkit.training.whole import mesh_device as mesh_device
from sftkit.units import size_text as size_text
from sftkit.user_modules import import_user_module as import_user_module
