"""The fields of `transformers.TrainingArguments`, read from its source: importing transformers takes seconds."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import operator
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Optional, Union

from pydantic import ConfigDict, TypeAdapter, ValidationError

from sftkit.config.evaluation import fields_of
from sftkit.errors import nearest

if TYPE_CHECKING:
    from sftkit.config.models import RunConfig

#: Defaults in which sftkit differs from transformers, and why.
DEFAULTS: dict[str, Any] = {
    "logging_nan_inf_filter": False,  # show a loss that is NaN
    "remove_unused_columns": False,  # the collator takes what the model needs
    "label_names": ["labels"],
    "disable_tqdm": True,  # sftkit shows its own progress
    "report_to": "none",
    "prediction_loss_only": True,
    "logging_steps": 10,
    "save_total_limit": 2,
}
#: Fields that a configuration cannot set, and what to do instead. Plugins give their own advice for those they replace.
REFUSED = {
    **dict.fromkeys(
        ("neftune_noise_alpha", "use_liger_kernel", "liger_kernel_config", "label_smoothing_factor"),
        "remove it, and use a plugin for it",
    ),
    "hub_token": "set HF_TOKEN in the environment: secrets do not belong in a configuration",
    "remove_unused_columns": "remove it: the collator takes the columns that the model needs",
    "length_column_name": "remove it: the length of a row is the number of its tokens",
    "label_names": "remove it: the labels are always in `labels`",
    "resume_from_checkpoint": "use --resume",
    "do_train": "remove it, or set train.max_steps=0 to evaluate only",
    "do_eval": "set data.eval and train.eval_strategy",
    "do_predict": "remove it: a run does not predict",
    "auto_find_batch_size": "remove it: batches that do not fit are halved, with the same gradients",
    "enable_jit_checkpoint": "remove it: a run always saves a checkpoint on SIGTERM",
    "local_rank": "remove it: torchrun sets it",
    "ddp_timeout": "use run.timeout, such as run.timeout=10m",
    "parallelism_config": "remove it, and use train.fsdp or train.deepspeed to shard the model",
    **dict.fromkeys(
        ("bf16_full_eval", "fp16_full_eval"),
        "remove it: an evaluation computes in the precision of the training, and a conversion would change the model",
    ),
}
#: Names that transformers 5 renamed or removed, or that other libraries use, and what to write instead.
MOVED = {
    "evaluation_strategy": "use eval_strategy",
    "warmup_ratio": "use warmup_steps, which takes a fraction below 1 as well",
    "group_by_length": "use train_sampling_strategy: group_by_length",
    "overwrite_output_dir": "use --overwrite",
    "no_cuda": "use use_cpu",
    "per_gpu_train_batch_size": "use per_device_train_batch_size",
    "per_gpu_eval_batch_size": "use per_device_eval_batch_size",
    "max_seq_length": "use data.max_length",
    "max_length": "use data.max_length",
    "logging_dir": "set TENSORBOARD_LOGGING_DIR in the environment",
}
#: Fields that turn on activation checkpointing; the second name exists since transformers 5.23.
CHECKPOINTING_KEYS = ("gradient_checkpointing", "activation_checkpointing")
#: Values of fields that transformers only describes in prose.
_CHOICES = {
    **dict.fromkeys(
        ("log_level", "log_level_replica"), ("detail", "debug", "info", "warning", "error", "critical", "passive")
    ),
    "include_num_input_tokens_seen": ("all", "non_padding", "no"),
}
#: Fields that take a mapping, or the path of a file with one; the others with a mapping take only its JSON.
FILE_FIELDS = ("deepspeed", "fsdp_config", "accelerator_config")
_TYPES: dict[str, Any] = {
    **{t.__name__: t for t in (str, int, float, bool, list, dict, tuple)},
    "Any": Any,
    "Optional": Optional,
    "Union": Union,
    "Literal": Literal,
}


@dataclass(frozen=True)
class TrainField:
    """One field: its type, in a form that pydantic understands, its default and its help."""

    name: str
    annotation: Any
    default: Any
    help: str


@functools.cache
def training_fields(package: Path | None = None) -> dict[str, TrainField]:
    """The fields by name, in order.

    Args:
        package: directory of transformers; by default the installed one.
    """
    if package is None:
        spec = importlib.util.find_spec("transformers")
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError("transformers is not installed")
        package = Path(next(iter(spec.submodule_search_locations)))
    tree = ast.parse((package / "training_args.py").read_text(encoding="utf-8"))
    enums = _enums(tree, package)
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments")
    fields = [_field(node, enums) for node in body if isinstance(node, ast.AnnAssign)]
    return {field.name: field for field in fields if not field.name.startswith("_")}


def _enums(tree: ast.Module, package: Path) -> dict[str, Any]:
    """The string enums used in annotations, as Literals; defined in this module or in those it imports from."""
    trees = [tree]
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module in ("trainer_utils", "debug_utils"):
            trees.append(ast.parse((package / f"{node.module}.py").read_text(encoding="utf-8")))
    found = {}
    for module in trees:
        for node in module.body:
            if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "ExplicitEnum" for base in node.bases):
                values = [
                    item.value.value
                    for item in node.body
                    if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant)
                ]
                found[node.name] = Literal[tuple(values)]
    return found


def _field(node: ast.AnnAssign, enums: Mapping[str, Any]) -> TrainField:
    name = node.target.id if isinstance(node.target, ast.Name) else ""
    default, described = None, {}
    value = node.value
    if isinstance(value, ast.Call):
        arguments = {keyword.arg: keyword.value for keyword in value.keywords}
        default = _literal(arguments.get("default"))
        if isinstance(arguments.get("default_factory"), ast.Name):
            default = {"list": [], "dict": {}}.get(ast.unparse(arguments["default_factory"]))
        if isinstance(metadata := arguments.get("metadata"), ast.Dict):
            described = {
                _literal(key): _literal(item) for key, item in zip(metadata.keys, metadata.values, strict=True)
            }
    elif value is not None:
        default = _literal(value)
    annotation = _type(node.annotation, enums)
    if choices := _CHOICES.get(name) or described.get("choices"):
        members = typing.get_args(annotation) or (annotation,)
        chosen = [Literal[tuple(choices)] if member is str else member for member in members]
        annotation = functools.reduce(operator.or_, chosen)
    return TrainField(name, annotation, default, " ".join(str(described.get("help") or "").split()))


def _literal(node: ast.expr | None) -> Any:
    try:
        return ast.literal_eval(node) if node is not None else None
    except ValueError:
        return None


def _type(node: ast.expr, enums: Mapping[str, Any]) -> Any:
    """An annotation as a type, without evaluating code; an unknown name becomes Any."""
    if isinstance(node, ast.Constant):
        return type(None) if node.value is None else node.value
    if isinstance(node, ast.BinOp):
        sides = [_type(side, enums) for side in (node.left, node.right)]
        # in `SchedulerType | str`, the string is one of the enum's values
        if any(typing.get_origin(side) is Literal for side in sides) and str in sides and _has_enum(node, enums):
            sides.remove(str)
        return sides[0] if len(sides) == 1 else functools.reduce(operator.or_, sides)
    if isinstance(node, ast.Subscript):
        base = _type(node.value, enums)
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        arguments = tuple(_type(part, enums) for part in parts)
        return Any if base is Any else base[arguments if len(arguments) > 1 else arguments[0]]
    if isinstance(node, ast.Name):
        return enums.get(node.id, _TYPES.get(node.id, Any))
    return Any


def _has_enum(node: ast.BinOp, enums: Mapping[str, Any]) -> bool:
    return any(isinstance(side, ast.Name) and side.id in enums for side in (node.left, node.right))


def allowed_fields() -> dict[str, TrainField]:
    """The fields that a configuration can set; the same in each supported version of transformers that has them."""
    return {name: field for name, field in training_fields().items() if name not in REFUSED and name not in MOVED}


def train_value(config: RunConfig, name: str) -> Any:
    """A training argument: what the section ``evaluate`` or ``train`` sets, else the default.

    Args:
        config: the run as resolved.
        name: a field of `transformers.TrainingArguments`.

    Raises:
        KeyError: if there is no such field.
    """
    for values in (fields_of(config), config.train):
        if name in values:
            return values[name]
    return DEFAULTS[name] if name in DEFAULTS else training_fields()[name].default


def evaluates_only(config: RunConfig) -> bool:
    """Whether the run has no steps: ``max_steps`` is 0, or ``num_train_epochs`` is."""
    steps = train_value(config, "max_steps")
    return bool(steps == 0 or (steps < 0 and train_value(config, "num_train_epochs") == 0))


def data_seed(config: RunConfig) -> int:
    """The seed of the order of the data: ``train.data_seed``, else ``train.seed``."""
    seed = train_value(config, "data_seed")
    return int(train_value(config, "seed") if seed is None else seed)


def check_train(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str, str]]]:
    """Check names and types.

    Returns:
        The values, coerced (YAML reads ``2e-5`` as text), and key, message and fix of each problem.
    """
    fields = allowed_fields()
    coerced, problems = {}, []
    for key, value in values.items():
        if key in REFUSED:
            problems.append((key, "cannot be set here", REFUSED[key]))
        elif key not in fields:
            fix = MOVED.get(key) or nearest(key, fields) or "use a field of transformers.TrainingArguments"
            problems.append((key, "no such training argument", fix))
        else:
            try:
                coerced[key] = _coerce(value, fields[key].annotation)
            except ValueError:
                problems.append((key, *_wrong(value, fields[key].annotation)))
    return coerced, problems


def takes_null(key: str, fields: Mapping[str, TrainField]) -> bool:
    """Whether null is a value of a field, as of `save_total_limit`; else it stands for the default."""
    annotation = fields[key].annotation if key in fields else Any
    return annotation is Any or type(None) in (annotation, *typing.get_args(annotation))


def _wrong(value: Any, annotation: Any) -> tuple[str, str]:
    """Message and fix of a value that a field does not take."""
    members = (annotation, *typing.get_args(annotation))
    choices = [name for each in members if typing.get_origin(each) is Literal for name in typing.get_args(each)]
    if choices and isinstance(value, str):
        return f"there is no {value!r}", nearest(value, map(str, choices)) or f"use {_plain(annotation)}"
    return f"{value!r} is of the wrong type", f"use {_plain(annotation)}"


def _coerce(value: Any, annotation: Any) -> Any:
    members = typing.get_args(annotation) or (annotation,)
    if value is False and "no" in members:
        return "no"  # YAML reads `save_strategy: no` as false
    if isinstance(value, bool) and bool not in members and Any not in members and value not in members:
        raise ValueError("a boolean is not a number")
    if isinstance(value, str) and str not in members and value.lower() in ("none", "null") and type(None) in members:
        return None
    if isinstance(value, str) and any(typing.get_origin(member) is dict or member is dict for member in members):
        return _mapping_or_path(value)
    try:
        coerced = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
        return value if coerced == value else coerced  # keep 10 steps as 10, not 10.0
    except ValidationError as error:
        raise ValueError(str(error)) from None


def _mapping_or_path(text: str) -> Any:
    """The mapping that a JSON text is; other text is the path of a file."""
    if not text.lstrip().startswith("{"):
        return text
    return json.loads(text)  # its error is a ValueError


_IN_WORDS: dict[Any, str] = {
    type(None): "null",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    dict: "a mapping",
    list: "a list",
}


def _plain(annotation: Any) -> str:
    """A type in words, such as ``one of linear, cosine`` or ``a whole number or null``."""
    if typing.get_origin(annotation) is Literal:
        return f"one of {', '.join(map(str, typing.get_args(annotation)))}"
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_plain(member) for member in typing.get_args(annotation))
    plain = typing.get_origin(annotation) or annotation
    return _IN_WORDS.get(plain, getattr(plain, "__name__", str(plain)))
