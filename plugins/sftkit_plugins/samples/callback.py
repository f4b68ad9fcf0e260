"""The callback that completes held-out rows before, during and after training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from sftkit.api import ConfigError, HeldOut, Problem, complete_prompts, console, show_table

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

FILE = "samples.jsonl"


class CompleteSamples(TrainerCallback):
    """Completes held-out rows before training, at each evaluation and after training.

    A resumed run keeps the completions up to the step that it continues from. Every rank completes the same rows, since
    sharded models need all ranks; only one writes.
    """

    def __init__(self, rows: int, max_new_tokens: int) -> None:
        self._rows, self._max_new_tokens = rows, max_new_tokens
        self._held_out = HeldOut([], 0)
        self._lines: list[dict[str, Any]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **trainer: Any
    ) -> None:
        """Choose the rows, and complete them with the untrained model."""
        self._held_out = held_out(trainer.get("eval_dataloader"), self._rows)
        earlier = _read(Path(args.output_dir, FILE)) if state.global_step else []
        self._lines = [_until(line, state.global_step) for line in earlier]
        if state.global_step == 0:
            self._complete(0, args, state, **trainer)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **trainer: Any
    ) -> None:
        """Complete the rows with the model as it is now, once for each step."""
        if self._held_out.prompts and state.global_step != self._last_step:
            self._complete(state.global_step, args, state, **trainer)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **trainer: Any
    ) -> None:
        """Complete the rows with the model that is saved, and show them."""
        step = state.global_step
        if args.load_best_model_at_end and state.best_model_checkpoint and state.best_global_step:
            step = state.best_global_step
        if step != self._last_step:
            self._complete(step, args, state, **trainer)
        if state.is_world_process_zero:
            show(self._lines)

    @property
    def _last_step(self) -> int | None:
        made = self._lines[0]["completions"] if self._lines else []
        return int(made[-1]["step"]) if made else None

    def _complete(
        self, step: int, args: TrainingArguments, state: TrainerState, *, model: Any, processing_class: Any, **_: Any
    ) -> None:
        tokenizer = getattr(processing_class, "tokenizer", processing_class)
        made = complete_prompts(model, tokenizer, self._held_out.prompts, self._max_new_tokens)
        if [(each.prompt, each.reference) for each in made] != [(x["prompt"], x["reference"]) for x in self._lines]:
            self._lines = [{"prompt": each.prompt, "reference": each.reference, "completions": []} for each in made]
        for line, each in zip(self._lines, made, strict=True):
            line["completions"].append({"step": step, "text": each.text, "exact": each.exact})
        if state.is_world_process_zero:
            path = Path(args.output_dir, FILE)
            path.parent.mkdir(parents=True, exist_ok=True)
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in self._lines)
            path.write_text(text, encoding="utf-8")


def held_out(eval_dataloader: Any, rows: int) -> HeldOut:
    """The prompts among the first ``rows`` rows of the evaluation data (of the first set, if it has several).

    Raises:
        ConfigError: if there is no evaluation data.
        DataError: if no row has a trained token with a prompt before it, or rows have images.
    """
    dataset = getattr(eval_dataloader, "dataset", None)
    if isinstance(dataset, dict):
        dataset = next(iter(dataset.values()), None)
    if dataset is None:
        what = "there is no evaluation data when training begins"
        raise ConfigError(Problem(what, "plugin samples", "set data.eval"))
    return HeldOut.of(dataset, rows)


def show(lines: list[dict[str, Any]]) -> None:
    """Print the rows: prompt, reference, and the completions before and after training."""
    rows = []
    for line in lines:
        made = line["completions"]
        before = made[0]["text"] if len(made) > 1 and made[0]["step"] == 0 else ""
        texts = (line["prompt"], line["reference"], before, made[-1]["text"])
        rows.append([" ".join(text.split())[-80:] for text in texts])
    show_table(console(), "Samples (greedy, held out)", ("prompt", "reference", "before", "after"), rows)


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def _until(line: dict[str, Any], step: int) -> dict[str, Any]:
    return {**line, "completions": [made for made in line["completions"] if made["step"] <= step]}
