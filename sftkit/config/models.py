"""The configuration of a run: ``model``, ``data``, ``train``, ``evaluate``, ``run`` and ``plugins``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from sftkit.config.duration import PATTERN, as_seconds
from sftkit.redact import without_secrets

Where = str | list[str]
PositiveFloat = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(gt=0)]
_TEXT = Annotated[str, Field(pattern=PATTERN)]
Duration = Annotated[float, Field(gt=0), BeforeValidator(as_seconds, json_schema_input_type=PositiveFloat | _TEXT)]
LONGEST = 10 * 365 * 86400.0  # seconds, which every library can count
_SET_NAME = re.compile(r"\w[\w .:+-]*")

SET_NAME_FIX = "use letters, digits, spaces and any of _ . : + -"


def misnamed_sets(names: Iterable[Any]) -> list[str]:
    """The names that no evaluation set can have, such as ``../x``: they are part of metrics, tables and files."""
    return [str(name) for name in names if not _SET_NAME.fullmatch(str(name))]


class Section(BaseModel):
    """Base of the sections: an unknown key is an error, and values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelSection(Section):
    """Which model to train, and how to load it."""

    name: str = Field(
        description="directory or hub name; a directory with a PEFT adapter continues its training; "
        "`demo` is the embedded model"
    )
    tokenizer: str | None = Field(None, description="directory or hub name of the tokenizer; default: the model's own")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "float32", description="dtype of the loaded weights; auto keeps the checkpoint's"
    )
    init: Literal["pretrained", "random"] = Field(
        "pretrained", description="random: initialize new weights from config.json, seeded with train.seed"
    )
    trust_remote_code: bool = Field(False, description="allow running Python code that comes with the model")
    options: dict[str, Any] = Field(default_factory=dict, description="extra arguments of `from_pretrained`")

    @property
    def loaded(self) -> bool:
        """Whether the model was passed as an object; ``name`` is then ``loaded`` and the name of its class."""
        return was_loaded(self.name)


def was_loaded(name: Any) -> bool:
    """Whether a name in a configuration stands for an object that a program passed: ``loaded`` and its class."""
    return isinstance(name, str) and name.startswith("loaded ")


class DataSection(Section):
    """What to train on, and how to prepare it."""

    train: Where | None = Field(
        None, description="file, glob, directory, URL or hub name, or a list of files; `demo` is the embedded data"
    )
    mix: dict[str, PositiveFloat] | None = Field(
        None, description="several sources and their weights, instead of `train`; their formats may differ"
    )
    mix_until: Literal["first", "all"] = Field(
        "first", description="stop when the first source is used up, or when all are; with all, smaller sources repeat"
    )
    eval: Where | Annotated[float, Field(gt=0, lt=1)] | dict[str, Where] | None = Field(
        None, description="evaluation data: like `train`, a fraction of the training data, or several sets by name"
    )
    prepared: str | None = Field(
        None,
        description="directory or URL that `sftkit prepare` has written for this data, used in place of the files",
    )
    subset: str | None = Field(None, description="configuration name of a hub data set")
    split: str = Field("train", description="split to train on, of a hub data set, a DatasetDict or files")
    max_length: PositiveInt = Field(1024, description="maximum number of tokens in a row")
    truncation: Literal["keep_start", "drop", "error"] = Field(
        "keep_start", description="what to do with longer examples: cut off their end, drop them, or stop"
    )
    on_bad_row: Literal["error", "skip"] = Field(
        "error", description="what to do with malformed rows: stop, or skip and count them"
    )
    max_bad_rows: PositiveInt = Field(100, description="on_bad_row: skip stops after this many bad rows in a split")
    streaming: bool = Field(
        False,
        description="read the training data during training, for data larger than the disk; needs train.max_steps",
    )
    shuffle_buffer: Annotated[int, Field(ge=0)] = Field(
        10_000, description="streaming: size of the shuffle buffer in rows; 0 keeps the order"
    )
    window: PositiveInt = Field(8192, description="streaming: number of rows to prepare and pack together")
    cache: bool = Field(True, description="keep prepared data on disk and reuse it while nothing has changed")
    special_tokens: Literal["bos_eos", "tokenizer", "none"] = Field(
        "bos_eos",
        description="special tokens around each text: one BOS and one EOS, what the tokenizer adds, or none; "
        "chat templates write their own",
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="variables for the chat template, such as `enable_thinking: false`; those of a row override them",
    )

    @field_validator("eval", mode="before")
    @classmethod
    def _plain_names(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and (wrong := misnamed_sets(value)):
            raise ValueError(f"an evaluation set cannot be named {wrong[0]!r}: {SET_NAME_FIX}")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> DataSection:
        if (self.train is None) == (self.mix is None):
            raise ValueError("set either data.train or data.mix")
        return self


class EvaluateSection(Section):
    """When a run is evaluated and by what, which model it keeps, and when it stops early."""

    every: PositiveInt | Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="steps between evaluations, or a fraction of all steps"
    )
    best: Annotated[str, Field(pattern=r"\S")] | None = Field(
        None, description="metric, such as eval_loss, whose best model is kept, loaded at the end and saved"
    )
    patience: PositiveInt | None = Field(
        None, description="stop after this many evaluations without a better value of `best`"
    )
    min_delta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.0, description="patience: a value counts as better if it is better than the best so far by more than this"
    )
    metrics: list[str] = Field(
        default_factory=list,
        description="metrics of greedy completions, such as exact_match, or functions `module:function`",
    )
    rows: PositiveInt | None = Field(
        128, description="metrics: held-out rows of each set that are completed, from the first; null for all"
    )
    max_new_tokens: PositiveInt = Field(128, description="metrics: maximum number of tokens of a completion")


class RunSection(Section):
    """How a run saves, stops and continues."""

    save_in_background: bool | Literal["auto"] = Field(
        "auto",
        description="write checkpoints while the training goes on; auto: if they are large, the weights and the "
        "optimizer state are not sharded, and memory is free for a copy of them",
    )
    on_nan: Literal["stop", "skip"] = Field(
        "stop", description="steps whose loss or gradient norm is not finite: stop, or skip and count them"
    )
    max_skipped: PositiveInt = Field(10, description="on_nan: skip stops after this many skipped steps")
    max_time: Duration | None = Field(
        None,
        description="save and stop when the run has taken this long: seconds, or text such as 2h30m, 11:30:00 "
        "or 1-12:00:00",
    )
    timeout: Annotated[Duration, Field(le=LONGEST)] = Field(
        600.0,
        description="with several processes: time in which each of them has to do something, as for max_time; one that "
        "is stuck for longer ends the run",
    )
    grace: Duration | None = Field(
        None,
        description="time between a signal that ends the run and the end of the process, as for max_time; a save that "
        "would take longer is skipped; default: no limit",
    )
    modules: Where | None = Field(
        None,
        description="directories of your own modules, searched before the working directory; default: those of the "
        "configuration files",
    )
    digest_weights: bool = Field(
        default=False,
        description="record a digest of the base weights, and compare it before a resume; without, only sizes and "
        "headers are compared",
    )
    sample_rows: Annotated[int, Field(ge=0, le=32)] = Field(
        4, description="rows of the training data whose text is kept in rows.jsonl for a report; 0 keeps no text"
    )


class RunConfig(Section):
    """A complete run, resolved from the file, the command line and the defaults. Its JSON form has no secrets."""

    model: ModelSection
    data: DataSection
    train: dict[str, Any] = Field(default_factory=dict, description="fields of transformers.TrainingArguments")
    evaluate: EvaluateSection = Field(
        default_factory=lambda: EvaluateSection.model_validate({}),
        description="when the run is evaluated and by what, which model it keeps, and when it stops early",
    )
    run: RunSection = Field(
        default_factory=lambda: RunSection.model_validate({}), description="how the run saves, stops and continues"
    )
    plugins: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="the selected plugins in order, each with its options"
    )

    @field_serializer("plugins", when_used="json")
    def _name_functions(self, plugins: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return {
            plugin: {option: function_name(value) if callable(value) else value for option, value in options.items()}
            for plugin, options in plugins.items()
        }

    @model_serializer(mode="wrap", when_used="json")
    def _hide_secrets(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        hidden: dict[str, Any] = without_secrets(handler(self))
        return hidden


def function_name(function: Any) -> str:
    """``module:function`` of a callable, or ``module:Class`` of a callable object."""
    return f"{function.__module__}:{getattr(function, '__qualname__', type(function).__qualname__)}"
