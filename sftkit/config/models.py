"""The configuration of a run: ``model``, ``data``, ``train`` and ``plugins``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_serializer, model_validator

Loss = Literal["all", "completion", "assistant"]
Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
Where = str | list[str]
PositiveFloat = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """Base of the sections: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelSection(Section):
    """Which model is trained, and how it is loaded."""

    name: str = Field(description="directory or hub name; a directory with a PEFT adapter continues it; `demo`")
    tokenizer: str | None = Field(None, description="directory or hub name of the tokenizer, if not the model's")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "float32", description="type of the loaded weights; auto: the checkpoint's own"
    )
    init: Literal["pretrained", "random"] = Field(
        "pretrained", description="random: new weights from the directory's config.json, drawn with train.seed"
    )
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")
    options: dict[str, Any] = Field(default_factory=dict, description="further arguments of `from_pretrained`")

    @property
    def loaded(self) -> bool:
        """Whether the model was given as an object; its name tells the object's class then."""
        return self.name.startswith("loaded ")


class DataSection(Section):
    """What is trained on."""

    train: Where | None = Field(None, description="file, glob, directory, hub name, or a list of them; `demo`")
    mix: dict[str, PositiveFloat] | None = Field(
        None, description="instead of `train`: several sources, each perhaps of another format, with their weights"
    )
    mix_until: Literal["first", "all"] = Field(
        "first", description="rows are taken until the first source is used up, or until all are (others repeat)"
    )
    eval: Where | Annotated[float, Field(gt=0, lt=1)] | dict[str, Where] | None = Field(
        None, description="held-out data: as `train`, or a fraction of it, or several sets by name"
    )
    subset: str | None = Field(None, description="configuration name of a hub data set")
    split: str = Field("train", description="split of a hub data set or DatasetDict to train on")
    max_length: PositiveInt = Field(1024, description="tokens a row, at most")
    truncation: Literal["keep_start", "drop", "error"] = Field(
        "keep_start", description="what happens to longer examples; each is counted"
    )
    on_bad_row: Literal["error", "skip"] = Field(
        "error", description="what happens to a row of a bad shape; skipped ones are counted"
    )
    max_bad_rows: PositiveInt = Field(100, description="on_bad_row: skip gives up behind so many of a split")
    streaming: bool = Field(
        False, description="read the training data while training, for data beyond the disk; needs train.max_steps"
    )
    shuffle_buffer: Annotated[int, Field(ge=0)] = Field(
        10_000, description="streaming: rows among which the next is drawn; 0 keeps their order"
    )
    window: PositiveInt = Field(8192, description="streaming: rows that are prepared, and packed, together")
    cache: bool = Field(True, description="keep prepared data on disk; unchanged data is not prepared again")
    loss: Loss | None = Field(None, description="what is trained; by default what the format implies")
    turns: Literal["all", "last"] = Field(
        "all", description="which of the turns of `roles` are trained; `train: false` on a message goes before it"
    )
    roles: Annotated[list[Role], Field(min_length=1)] = Field(
        ["assistant"], description="whose turns are trained in conversations"
    )
    special_tokens: Literal["bos_eos", "tokenizer", "none"] = Field(
        "bos_eos",
        description="around each text: BOS and EOS once; what the tokenizer itself puts there; none. "
        "Chat templates write their own",
    )
    text_column: str = Field("text", description="column that holds plain text")
    formatting: str | Callable[..., Any] | None = Field(
        None, description="your own formatting function, `module:function`"
    )

    @model_validator(mode="after")
    def _one_source(self) -> DataSection:
        if (self.train is None) == (self.mix is None):
            raise ValueError("give one of data.train and data.mix")
        return self

    @field_serializer("formatting")
    def _name_formatting(self, value: str | Callable[..., Any] | None) -> str | None:
        if value is None or isinstance(value, str):
            return value
        return f"{value.__module__}:{getattr(value, '__qualname__', type(value).__qualname__)}"


class RunConfig(Section):
    """A whole run, as resolved: what the file, the command line and the defaults say together."""

    model: ModelSection
    data: DataSection
    train: dict[str, Any] = Field(default_factory=dict, description="fields of transformers.TrainingArguments")
    plugins: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="selected plugins in order, each with its options"
    )
