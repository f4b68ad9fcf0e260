"""The runs of a sweep: checked before the first one starts, then run one after the other."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.api import ConfigError, Interrupted, Problem, pipeline_from, smaller_is_better, world_size
from sftkit_commands.sweep.process import Processes
from sftkit_commands.sweep.record import Sweep, SweepRun, check_directory
from sftkit_commands.sweep.show import show_run
from sftkit_commands.sweep.space import Space, run_names

if TYPE_CHECKING:
    from sftkit.api import Pipeline, WrittenConfig
    from sftkit_commands.sweep.search import Search

BASE = "sweep"  # the configuration that trials change


@dataclass(frozen=True)
class Options:
    """The options of the command."""

    plugins: list[str]
    model: str = ""
    data: str = ""
    metric: str = ""
    maximize: bool | None = None
    trials: int = 0
    seed: int = 0
    resume: bool = False


@dataclass
class Plan:
    """A sweep that is ready to run.

    Attributes:
        space: what varies.
        options: of the command.
        sweep: its runs and their outcome.
        written: the configuration of each run; of trials, that of the first combination.
    """

    space: Space
    options: Options
    sweep: Sweep
    written: list[WrittenConfig] = field(default_factory=list)

    @classmethod
    def make(cls, space: Space, options: Options, output: str) -> Plan:
        """Check every configuration; of trials, each value and each end of a range.

        Raises:
            ConfigError: with every problem, and the values that it comes from.
        """
        if world_size() > 1:
            fix = "start it without torchrun; the runs use the devices of one process"
            raise ConfigError(Problem("a sweep cannot be run by several processes", "sftkit sweep", fix))
        directory = Path(output or f"runs/sweep-{datetime.now():%Y%m%d-%H%M%S}")
        earlier = check_directory(directory, options.resume)
        if options.trials:
            from sftkit_commands.sweep.search import check_installed

            check_installed()
        plan = cls(space, options, Sweep(directory, space.described(), options.metric, bool(options.maximize)))
        combinations = space.corners() if options.trials else space.grid()
        names = ["" for _ in combinations] if options.trials else run_names(combinations)
        plan._check(combinations, names)
        plan.sweep.metric = plan._metric()
        plan.sweep.maximize = plan._maximize()
        plan._compare(earlier)
        if options.trials:
            plan.sweep.runs = [SweepRun(each["name"], each["parameters"]) for each in _in_order(earlier)]
        else:
            plan.sweep.runs = [SweepRun(*each) for each in zip(names, combinations, strict=True)]
        for run in plan.sweep.runs:
            if (directory / run.name).is_dir():
                run.read(directory)
        return plan

    def _check(self, combinations: list[dict[str, str]], names: list[str]) -> None:
        found: dict[Problem, dict[str, str]] = {}
        for chosen, name in zip(combinations, names, strict=True):
            try:
                pipeline = self._pipeline([*self.space.fixed, *assignments(chosen)], name)
                problems = pipeline.check()
                self.written += [] if problems else [pipeline.written()]
            except ConfigError as error:
                problems = error.problems
            for problem in problems:
                found.setdefault(problem, chosen)
        if found:
            shared = len(combinations) > 1 and len(self.written) > 0
            raise ConfigError(_with_values(problem, chosen) if shared else problem for problem, chosen in found.items())

    def _pipeline(self, arguments: list[str], name: str) -> Pipeline:
        options = self.options
        output = str(self.sweep.directory / name) if name else ""
        return pipeline_from(
            arguments, options.plugins, options.model, options.data, output, resume="auto" if name else False
        )

    def _metric(self) -> str:
        held_out = self.written[0].config.data.eval
        metric = self.options.metric or ("train_loss" if held_out is None else "eval_loss")
        if metric.startswith("eval_") and held_out is None:
            fix = "set data.eval, or choose another --metric"
            raise ConfigError(Problem(f"no run has {metric}, since there is no evaluation data", "--metric", fix))
        if isinstance(held_out, dict) and not self.options.metric:
            names = ", ".join(f"eval_{name}_loss" for name in held_out)
            fix = f"choose one with --metric, such as {names}"
            raise ConfigError(Problem("there are several evaluation sets", "--metric", fix))
        return metric

    def _maximize(self) -> bool:
        """Whether a larger value is better: by the option, else by the name of the metric."""
        if self.options.maximize is not None:
            return self.options.maximize
        if (smaller := smaller_is_better(self.sweep.metric)) is None:
            what = f"the name {self.sweep.metric} does not say whether a larger or a smaller value is better"
            raise ConfigError(Problem(what, "--metric", "add --maximize or --minimize"))
        return not smaller

    def _compare(self, earlier: dict[str, Any] | None) -> None:
        """Raises:
        ConfigError: if trials were made with another space or another metric.
        """
        now = self.sweep.as_dict()
        parts = {"space": "space", "metric": "metric", "maximize": "direction of the metric"}
        changed = [shown for name, shown in parts.items() if earlier and earlier.get(name) != now[name]]
        if changed and self.options.trials:
            what = f"the trials so far were made with another {' and '.join(changed)}"
            fix = "set it back, or choose another --output DIR"
            raise ConfigError(Problem(what, str(self.sweep.directory), fix))

    def run(self, quiet: bool) -> None:
        """Run all that is not done; a run that fails does not end the sweep.

        Args:
            quiet: whether the output of the runs goes to standard error.

        Raises:
            Interrupted: if a signal ends the sweep.
        """
        self.sweep.write()
        with Processes() as processes:
            if self.options.trials:
                self._run_trials(processes, quiet)
            else:
                total = len(self.sweep.runs)
                for index, (run, written) in enumerate(zip(self.sweep.runs, self.written, strict=True)):
                    self._run(run, written, processes, f"{index + 1}/{total}", quiet)
        self.sweep.write()

    def _run_trials(self, processes: Processes, quiet: bool) -> None:
        from sftkit_commands.sweep.search import Search

        options = self.options
        search = Search(self.space, self.sweep.directory, self.sweep.maximize, options.seed)
        base = self.sweep.write_config(SweepRun(BASE, {}), self.written[0].text)
        for number, run in self._trials(search):
            # From the copy: the files may be changed while the sweep goes on.
            pipeline = pipeline_from(
                [str(base), *assignments(run.parameters)], output=str(self.sweep.directory / run.name), resume="auto"
            )
            self._run(run, pipeline.written(), processes, f"{number + 1}/{options.trials}", quiet)
            search.report(number, run, self.sweep.metric)

    def _trials(self, search: Search) -> Iterator[tuple[int, SweepRun]]:
        known = {run.name: run for run in self.sweep.runs}
        for number, parameters in search.trials(self.options.trials):
            name = f"trial-{number:03}"
            if name not in known:
                self.sweep.runs.append(SweepRun(name, parameters))
            yield number, known.get(name, self.sweep.runs[-1])

    def _run(self, run: SweepRun, written: WrittenConfig, processes: Processes, count: str, quiet: bool) -> None:
        self._stop_if_interrupted(processes)
        if self.options.resume and self.sweep.finished(run, written.text):
            show_run(run, count, "is done", quiet)
            return
        show_run(run, count, "", quiet)
        config = self.sweep.write_config(run, written.text)
        code = processes.run(config, self.sweep.directory / run.name, written.secrets, quiet)
        run.read(self.sweep.directory, code)
        self.sweep.write()
        if code in (130, -signal.SIGINT):
            processes.signal = processes.signal or signal.SIGINT
        self._stop_if_interrupted(processes)

    def _stop_if_interrupted(self, processes: Processes) -> None:
        if processes.signal is None:
            return
        done = sum(run.status == "done" for run in self.sweep.runs)
        total = self.options.trials or len(self.sweep.runs)
        kept = [item for item in sys.argv[1:] if item != "--resume"]
        if not any(item in ("-o", "--output") or item.startswith("--output=") for item in kept):
            kept += ["--output", str(self.sweep.directory)]
        again = shlex.join(["sftkit", *kept, "--resume"])
        reason = f"{signal.Signals(processes.signal).name}: {done} of {total} runs are done; continue with: {again}"
        raise Interrupted(reason, 128 + processes.signal)


def assignments(chosen: dict[str, str]) -> list[str]:
    """The values as arguments of the command line."""
    return [f"{key}={text}" for key, text in chosen.items()]


def _with_values(problem: Problem, chosen: dict[str, str]) -> Problem:
    where = f"{problem.where} (with {' '.join(assignments(chosen))})"
    return Problem(problem.what, where.strip(), problem.fix)


def _in_order(earlier: dict[str, Any] | None) -> list[dict[str, Any]]:
    runs = earlier["runs"] if earlier else []
    return sorted(runs, key=lambda run: run["name"])
