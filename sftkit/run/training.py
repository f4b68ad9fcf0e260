"""The training stage of a run: its trainer, the loop, and what is saved."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.run.stages import reduced_activations

if TYPE_CHECKING:
    from sftkit.console import Display
    from sftkit.run.stages import PreparedRun, Stages


def make_trainer(stages: Stages, prepared: PreparedRun, model: Any, display: Display, directory: Path) -> Any:
    """The trainer of a run.

    Args:
        stages: the run's stages.
        prepared: its data, tokenizer and collator.
        model: the model to train.
        display: where progress is shown.
        directory: where ``log.jsonl`` is written.
    """
    from transformers import PrinterCallback, set_seed

    from sftkit.training.arguments import training_arguments
    from sftkit.training.progress import ProgressCallback
    from sftkit.training.trainer import TokenLossTrainer

    config, data = prepared.config, prepared.data
    arguments = training_arguments(config, has_eval=bool(data.eval))
    if "use_cache" not in config.train:  # the Trainer writes it into the model's configuration, which is saved
        arguments.use_cache = getattr(model.config, "use_cache", False)
    if prepared.vocabulary.processor is not None and arguments.ddp_find_unused_parameters is None:
        # A process whose batch has no image leaves the vision tower without gradients, and others would wait for them.
        arguments.ddp_find_unused_parameters = True
    set_seed(arguments.seed)
    sets = list(data.eval.values())
    progress = ProgressCallback(display, directory / "log.jsonl")
    trainer = TokenLossTrainer(
        loss=stages.make_loss(model),
        model=model,
        args=arguments,
        data_collator=prepared.collator,
        train_dataset=data.train,
        eval_dataset=sets[0] if len(sets) == 1 else data.eval or None,
        processing_class=prepared.vocabulary.processor or prepared.tokenizer,
        callbacks=[progress, *stages.callbacks(), *stages.inputs.callbacks],
    )
    if sets:  # so that callbacks see it from the start, and not only after the first evaluation
        trainer.callback_handler.eval_dataloader = trainer.get_eval_dataloader(sets[0])
    trainer.remove_callback(PrinterCallback)
    return trainer


def train(trainer: Any, stages: Stages, prepared: PreparedRun, checkpoint: str | None) -> dict[str, float]:
    """Train, and evaluate within the same contexts, since batches are made for the model as it is in them.

    Args:
        checkpoint: the checkpoint to continue from, if there is one.

    Returns:
        The last value of each metric, and the value before the first step as ``NAME_before``.
    """
    with ExitStack() as stack:
        stack.enter_context(reduced_activations(trainer.model, prepared))
        stack.enter_context(trainer.loss_head.installed())
        stack.enter_context(stages.training(trainer.model, prepared.data.train, prepared.collator))
        trainer.train(resume_from_checkpoint=checkpoint)
        if prepared.data.eval and trainer.args.eval_strategy == "no":
            trainer.evaluate()
    return _final_metrics(trainer.state.log_history)


def save(trainer: Any, prepared: PreparedRun, directory: Path) -> None:
    """Save the model with its tokenizer, then whatever plugins export."""
    trainer.save_model(str(directory))
    model = trainer.accelerator.unwrap_model(trainer.model)
    prepared.plugins.hook.export_model(model=model, tokenizer=prepared.tokenizer, directory=directory)


def _final_metrics(log_history: list[dict[str, Any]]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for entry in log_history:
        for name, value in entry.items():
            if not name.startswith(("eval_", "train_")) or name.endswith(("_runtime", "_per_second", "flos")):
                continue
            key = f"{name}_before" if entry.get("step") == 0 and name.startswith("eval_") else name
            metrics[key] = value
    return metrics
