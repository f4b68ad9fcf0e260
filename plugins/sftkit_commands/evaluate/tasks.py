"""Tasks of lm-eval, on a model that is loaded."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.api import ConfigError, Evaluation, Problem, nearest, requirement_problem

if TYPE_CHECKING:
    from sftkit.api import TrainedModel

REQUIREMENT = "lm-eval>=0.4.9"
WHERE = "--tasks"


@dataclass(frozen=True)
class Tasks:
    """Tasks that were found, and how they are evaluated."""

    names: list[str]
    manager: Any
    limit: int | None
    fewshot: int | None
    chat_template: bool
    batch_size: int

    @classmethod
    def find(
        cls,
        names: list[str],
        include_path: Path | None,
        limit: int | None,
        fewshot: int | None,
        chat_template: bool,
        batch_size: int,
    ) -> Tasks:
        """Look up tasks; only if the directory lacks one of them, also among those of lm-eval, which takes seconds.

        Raises:
            ConfigError: if lm-eval is not installed, or there is no such task.
        """
        if problem := requirement_problem(REQUIREMENT, WHERE):
            raise ConfigError(problem)
        if include_path is not None and not include_path.is_dir():
            raise ConfigError(
                Problem("there is no such directory", f"--include-path {include_path}", "correct the path")
            )
        from lm_eval.tasks import TaskManager

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        manager = None
        if include_path is not None:
            manager = TaskManager(include_path=str(include_path), include_defaults=False)
        if manager is None or not {*names} <= {*manager.all_tasks}:
            manager = TaskManager(include_path=str(include_path) if include_path else None)
        known = list(manager.all_tasks)
        problems = [
            Problem(f"there is no task {name!r}", WHERE, nearest(name, known) or "name a task, or set --include-path")
            for name in names
            if name not in known
        ]
        if problems:
            raise ConfigError(problems)
        return cls(names, manager, limit, fewshot, chat_template, batch_size)

    def evaluate(self, trained: TrainedModel) -> Evaluation:
        """The metrics of each task, named ``TASK_METRIC``, with their standard errors.

        Raises:
            ConfigError: if lm-eval cannot evaluate them, such as for data on the hub without a network.
        """
        from lm_eval import evaluator
        from lm_eval.models.huggingface import HFLM

        if self.chat_template and not trained.tokenizer.chat_template:
            what = "the tokenizer has no chat template"
            raise ConfigError(Problem(what, "--chat-template", "remove the option"))
        model = HFLM(pretrained=trained.model, tokenizer=trained.tokenizer, batch_size=self.batch_size)
        options = {"limit": self.limit, "num_fewshot": self.fewshot, "apply_chat_template": self.chat_template}
        try:
            with _without_commit(evaluator):
                found = evaluator.simple_evaluate(
                    model, tasks=self.names, task_manager=self.manager, log_samples=False, **options
                )
        except Exception as error:  # of the task's code, of its data, of the hub
            what = f"lm-eval fails: {type(error).__name__}: {' '.join(str(error).split())}"
            fix = "the data of most tasks is on the hub: connect to it once, or use a task with local files"
            raise ConfigError(Problem(what, f"{WHERE} {','.join(self.names)}", fix)) from error
        return Evaluation(dict(_values(found["results"])))


@contextmanager
def _without_commit(evaluator: Any) -> Iterator[None]:
    """Lets lm-eval not ask for the commit of the working directory: git complains where there is none."""
    ask, evaluator.get_git_commit_hash = evaluator.get_git_commit_hash, lambda: None
    try:
        yield
    finally:
        evaluator.get_git_commit_hash = ask


def _values(results: dict[str, dict[str, Any]]) -> Iterator[tuple[str, float]]:
    """Name and value of each metric; lm-eval writes ``acc,none`` for the metric acc without a filter."""
    for task, values in results.items():
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and "," in name:
                metric, _, kind = name.partition(",")
                yield f"{task}_{metric}" + ("" if kind == "none" else f"_{kind}"), float(value)
