"""Trials that Optuna chooses, kept on disk so that a sweep can be continued."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.api import ConfigError, requirement_problem
from sftkit_commands.sweep.record import DONE, SweepRun

if TYPE_CHECKING:
    from sftkit_commands.sweep.space import Space

REQUIREMENT = "optuna>=4"
JOURNAL = ".optuna.log"


def check_installed() -> None:
    """Raises:
    ConfigError: if Optuna is missing or too old.
    """
    if problem := requirement_problem(REQUIREMENT, "--trials"):
        raise ConfigError(problem)


class Search:
    """The trials of a sweep.

    Args:
        space: what varies.
        directory: of the sweep.
        maximize: whether a larger metric is better.
        seed: of the choices. A continued sweep makes the same choices as one that was never interrupted.
    """

    def __init__(self, space: Space, directory: Path, maximize: bool, seed: int) -> None:
        import optuna
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._space, self._seed = optuna, space, seed
        directory.mkdir(parents=True, exist_ok=True)
        backend = JournalFileBackend(str(directory / JOURNAL))
        self._study = optuna.create_study(
            study_name="sweep",
            storage=optuna.storages.JournalStorage(backend),
            direction="maximize" if maximize else "minimize",
            load_if_exists=True,
        )

    def trials(self, number: int) -> Iterator[tuple[int, dict[str, str]]]:
        """The trials up to a number that have not ended: those that were interrupted, then new ones.

        Each has to be reported before the next one is asked for.
        """
        running = self._study.get_trials(deepcopy=False, states=[self._optuna.trial.TrialState.RUNNING])
        for frozen in running:
            yield frozen.number, self._texts(frozen.params)
        for count in range(len(self._study.trials), number):
            self._study.sampler = self._optuna.samplers.TPESampler(seed=self._seed + count)
            trial = self._study.ask()
            yield trial.number, self._texts(self._suggest(trial))

    def report(self, number: int, run: SweepRun, metric: str) -> None:
        """Report the outcome of a trial."""
        value = run.value(metric)
        if run.status == DONE and math.isfinite(value):
            self._study.tell(number, value)
        else:
            self._study.tell(number, state=self._optuna.trial.TrialState.FAIL)

    def _suggest(self, trial: Any) -> dict[str, Any]:
        chosen: dict[str, Any] = {
            key: trial.suggest_categorical(key, texts) for key, texts in self._space.values.items()
        }
        for key, each in self._space.ranges.items():
            suggest = trial.suggest_int if each.whole else trial.suggest_float
            chosen[key] = suggest(key, each.low, each.high, log=each.log)
        return chosen

    def _texts(self, parameters: dict[str, Any]) -> dict[str, str]:
        return {
            key: parameters[key] if key in self._space.values else repr(parameters[key]) for key in self._space.keys
        }
