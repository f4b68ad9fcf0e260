"""From a script to what its trainer is made of: data sets, plugins, model, loss and arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from transformers.trainer_utils import number_of_arguments

from sftkit.api import Vocabulary
from sftkit_trl.data import DataSets, PreparedSets, by_split, from_splits
from sftkit_trl.script import Script, check_dataset_kwargs
from sftkit_trl.stages import plugins_of, stages_of

if TYPE_CHECKING:
    from sftkit.api import Stages
    from sftkit_trl.arguments import SFTConfig

#: Prepares one data set, as a subclass's ``_prepare_dataset`` does, with packing or without.
PrepareOne = Callable[[Any, bool], Any]
#: Stands for the model where one data set is prepared alone: the name is never looked up.
NO_MODEL = "no model"


@dataclass(frozen=True)
class Built:
    """What a trainer is made of.

    Attributes:
        stages: the run's stages and plugins.
        arguments: of `sftkit.api.TokenLossTrainer`.
        use_cache: the model's own setting, which `transformers.Trainer` overwrites.
    """

    stages: Stages
    arguments: dict[str, Any]
    use_cache: bool | None


def build(script: Script, prepared: PreparedSets, prepare_one: PrepareOne | None) -> Built:
    """Prepare the data, then load the model. A loaded model is changed: it is the one that is trained.

    Args:
        script: the trainer's arguments.
        prepared: takes note of the data sets that are prepared.
        prepare_one: the subclass's preparation; None to prepare all data sets together.

    Raises:
        SftkitError: if the configuration, the data or the model cannot be used.
        ValueError: as TRL for arguments that contradict each other.
    """
    args, tokenizer = script.args, script.tokenizer
    splits, sets = _sets(script, prepare_one)
    packs = args.packing and bool(sets.to_prepare or prepared)
    plugins = plugins_of(args, tokenizer, packs, script.peft_config)
    named = script.model or script.model_init
    stages = stages_of(named, args, sets, plugins, tokenizer, script.data_collator)
    made = sets.prepare(stages, tokenizer, args)
    prepared.add(made.values())
    train, evaluation = from_splits({name: made.get(name, rows) for name, rows in splits.items()})

    def with_plugins(model: Any) -> Any:
        """A model as the plugins load or change it; a module that is not a transformers model stays as it is."""
        if model is None or hasattr(model, "get_input_embeddings"):
            return stages.load_model(Vocabulary(tokenizer, [], changed=False), model)
        return model

    model = None if script.model is None else with_plugins(None if isinstance(script.model, str) else script.model)
    own_loss = model is not None and _has_own_loss(model)
    if own_loss and args.label_smoothing_factor:
        raise ValueError(
            f"label_smoothing_factor: {type(model).__name__} computes its own loss, which is not smoothed. Set it to 0."
        )
    arguments = {
        "loss": None if own_loss else stages.make_loss(model),
        "model": model,
        "args": script.trainer_arguments(evaluates=evaluation is not None),
        "data_collator": stages.make_collator(tokenizer),
        "train_dataset": train,
        "eval_dataset": evaluation,
        "processing_class": script.processor,
        "model_init": _then(script.model_init, with_plugins),
        "callbacks": [*stages.callbacks(), *script.callbacks],
        **script.passed_on,
    }
    use_cache = getattr(getattr(model, "config", None), "use_cache", args.use_cache)
    return Built(stages, arguments, use_cache)


def prepare_alone(
    rows: Any, args: SFTConfig, function: Callable[[Any], Any] | None, tokenizer: Any, prepared: PreparedSets
) -> Any:
    """One data set, prepared without the others and without a model.

    Args:
        rows: the data set.
        args: the script's, with what differs for this data set.
        function: the formatting function, or None.
        tokenizer: of the model.
        prepared: takes note of the data set, if it is prepared.
    """
    check_dataset_kwargs(args)
    sets = DataSets.of(by_split(rows, None), function, tokenizer, args)
    stages = stages_of(NO_MODEL, args, sets, plugins_of(args, tokenizer, args.packing), tokenizer)
    made = sets.prepare(stages, tokenizer, args)
    prepared.add(made.values())
    train, _ = from_splits({**sets.unchanged, **made})
    return train


def stages_without_packing(script: Script) -> Stages:
    """The stages of a run whose documents see each other: the plugin would refuse the model."""
    args, tokenizer = script.args, script.tokenizer
    plugins = plugins_of(args, tokenizer, False, script.peft_config)
    return stages_of(
        script.model or script.model_init, args, DataSets({}, {}), plugins, tokenizer, script.data_collator
    )


def _sets(script: Script, prepare_one: PrepareOne | None) -> tuple[dict[str, Any], DataSets]:
    """The data sets by split as they are used unless they are prepared, and those to prepare."""
    args = script.args
    splits = by_split(script.train_dataset, script.eval_dataset)
    if prepare_one is not None:
        packing = {name: args.packing and (name == "train" or args.eval_packing is not False) for name in splits}
        return {name: prepare_one(rows, packing[name]) for name, rows in splits.items()}, DataSets({}, {})
    check_dataset_kwargs(args)
    with PartialState().local_main_process_first():
        sets = DataSets.of(splits, script.formatting_func, script.tokenizer, args)
    return {name: sets.unchanged.get(name) for name in splits}, sets


def _then(model_init: Callable[..., Any] | None, change: Callable[[Any], Any]) -> Callable[..., Any] | None:
    """A ``model_init`` whose models are changed, with as many arguments, which `transformers.Trainer` counts."""
    if model_init is None:
        return None
    if number_of_arguments(model_init) == 0:
        return lambda: change(model_init())
    return lambda trial: change(model_init(trial))


def _has_own_loss(model: Any) -> bool:
    """Whether a model's own loss is trained: it is of the user's class, or has an encoder before its decoder."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    own_class = not type(base).__module__.startswith(("transformers.", "peft.", "unsloth"))
    return own_class or getattr(base.config, "is_encoder_decoder", False)
