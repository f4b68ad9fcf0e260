"""The callback that completes held-out rows when training begins and ends."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers import TrainerCallback

from sftkit.api import ConfigError, DataError, Problem, complete, console, show_table

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

IGNORE = -100
FILE = "samples.jsonl"


class Sample(NamedTuple):
    """A held-out row: the ids before its last trained run of tokens, and the ids of that run."""

    prompt: list[int]
    reference: list[int]


class CompleteSamples(TrainerCallback):
    """Completes held-out rows before and after training, and logs how many match the reference exactly.

    A resumed run keeps the completions from before its first step. Every rank completes the same rows, since sharded
    models need all ranks; only one writes.
    """

    def __init__(self, rows: int, shown: int, max_new_tokens: int) -> None:
        self.rows, self.shown, self.max_new_tokens = rows, shown, max_new_tokens
        self.samples: list[Sample] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **trainer: Any
    ) -> None:
        """Choose the rows, and complete them with the untrained model."""
        self.samples = held_out(trainer.get("eval_dataloader"), self.rows)
        if state.global_step == 0:
            completions = self._complete(state, **trainer)
            self._write(args, state, trainer["processing_class"], "before", completions)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **trainer: Any
    ) -> None:
        """Complete the same rows with the trained model, and write both completions."""
        completions = self._complete(state, **trainer)
        self._write(args, state, trainer["processing_class"], "after", completions)

    def _complete(self, state: TrainerState, *, model: Any, processing_class: Any, **_: Any) -> list[str]:
        tokenizer = _tokenizer(processing_class)
        completions = complete(model, tokenizer, [sample.prompt for sample in self.samples], self.max_new_tokens)
        pairs = zip(completions, _texts(tokenizer, self.samples), strict=True)
        exact = sum(completion == reference for completion, reference in pairs)
        state.log_history.append({"eval_exact_match": exact / len(self.samples), "step": state.global_step})
        return completions

    def _write(
        self, args: TrainingArguments, state: TrainerState, processing_class: Any, when: str, completions: list[str]
    ) -> None:
        """Write the rows to show, and keep the completions from before training."""
        if not state.is_world_process_zero:
            return
        path = Path(args.output_dir) / FILE
        earlier = path.read_text("utf-8").splitlines() if when == "after" and path.exists() else []
        tokenizer = _tokenizer(processing_class)
        samples = self.samples[: self.shown]
        lines = []
        for index, (sample, reference) in enumerate(zip(samples, _texts(tokenizer, samples), strict=True)):
            line = {"prompt": tokenizer.decode(sample.prompt, skip_special_tokens=True), "reference": reference}
            line |= {"before": None, "after": None, "exact_before": None, "exact_after": None}
            if index < len(earlier):
                line |= {name: json.loads(earlier[index])[name] for name in ("before", "exact_before")}
            line |= {when: completions[index], f"exact_{when}": completions[index] == reference}
            lines.append(json.dumps(line, ensure_ascii=False))
        if when == "after":
            show([json.loads(line) for line in lines])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(line + "\n" for line in lines), "utf-8")


def show(samples: list[dict[str, Any]]) -> None:
    """Print the rows: prompt, reference, and the completions before and after training."""
    columns = ("prompt", "reference", "before", "after")
    rows = [[" ".join(str(sample[column] or "").split())[-80:] for column in columns] for sample in samples]
    show_table(console(), "Samples (greedy, held out)", columns, rows)


def held_out(eval_dataloader: Any, rows: int) -> list[Sample]:
    """The samples among the first ``rows`` examples of the evaluation data (of the first set, if it has several).

    Raises:
        ConfigError: if there is no evaluation data, or it is packed.
        DataError: if no example has a trained token with a prompt in front.
    """
    dataset = getattr(eval_dataloader, "dataset", None)
    if isinstance(dataset, dict):
        dataset = next(iter(dataset.values()), None)
    if dataset is None:
        raise ConfigError(
            Problem("there is no evaluation data when training begins", "plugin samples", "set data.eval")
        )
    examples = list(islice(iter(dataset), rows))
    if any("position_ids" in example for example in examples):
        fix = "leave the evaluation data single (packing: eval: false), or drop samples"
        raise ConfigError(Problem("samples needs evaluation data that is not packed", "plugin samples", fix))
    samples = [sample for example in examples if (sample := last_completion(example))]
    if not samples:
        what = f"none of the first {len(examples)} held-out rows has a trained token with a prompt in front"
        raise DataError(Problem(what, "data.eval", "hold out rows with completions, or drop samples"))
    return samples


def last_completion(example: dict[str, Any]) -> Sample | None:
    """The last contiguous run of trained labels as the reference, and all ids in front of it as the prompt."""
    labels = list(map(int, example["labels"]))
    end = len(labels)
    while end and labels[end - 1] == IGNORE:
        end -= 1
    start = end
    while start and labels[start - 1] != IGNORE:
        start -= 1
    ids = list(map(int, example["input_ids"]))
    return Sample(ids[:start], ids[start:end]) if 0 < start < end else None


def _texts(tokenizer: Any, samples: list[Sample]) -> list[str]:
    return [tokenizer.decode(sample.reference, skip_special_tokens=True).strip() for sample in samples]


def _tokenizer(processing_class: Any) -> Any:
    return getattr(processing_class, "tokenizer", processing_class)
