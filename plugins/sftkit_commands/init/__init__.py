"""``sftkit init``: write a configuration, by a few questions or from that of another tool."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from sftkit.api import DataOption, JsonOption, ModelOption, OutputOption

if TYPE_CHECKING:
    from rich.console import Console

    from sftkit_commands.init.questions import Answers


def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write. Default: sft.yaml.")] = Path(
        "sft.yaml"
    ),
    source: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--from", metavar="FILE", help="Translate this file of Axolotl, LLaMA-Factory or TRL."),
    ] = None,
    kind: Annotated[
        str, typer.Option("--format", metavar="NAME", help="With --from: axolotl, llamafactory or trl.")
    ] = "",
    model: ModelOption = "",
    data: DataOption = "",
    method: Annotated[str, typer.Option("--method", metavar="NAME", help="full, lora or qlora.")] = "",
    memory: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--memory", metavar="GB", help="Memory of the GPU; 0 for none."),
    ] = None,
    share: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--eval", metavar="X", help="Share of the rows that is held out, such as 0.05."),
    ] = None,
    output: OutputOption = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: take the defaults.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    json: JsonOption = False,
) -> None:
    """Write a configuration: ask a few questions, or translate one of Axolotl, LLaMA-Factory or TRL.

    With `--yes` or `--json` it asks nothing:

        sftkit init
        sftkit init --yes -m Qwen/Qwen3-0.6B -d train.jsonl
        sftkit init sft.yaml --from axolotl.yml
    """
    from sftkit.api import printing_json, show_json
    from sftkit_commands.init.questions import Answers, check

    answers = Answers(model or None, data or None, method or None, memory, share, output or None)
    _refuse(file, source, answers, kind, force)
    check(answers)
    with printing_json(json):
        found = _translate(source, file, kind, force, json) if source is not None else _ask(file, answers, yes, json)
    if json:
        show_json(found)


def _refuse(file: Path, source: Path | None, answers: Answers, kind: str, force: bool) -> None:
    """Raises:
    ConfigError: if the file exists, or options do not fit together.
    """
    from sftkit.api import ConfigError, Problem

    if file.exists() and not force:
        raise ConfigError(Problem("the file exists", str(file), "give another name, or replace it with --force"))
    if not file.resolve().parent.is_dir():
        raise ConfigError(Problem("there is no such directory", str(file.parent), "create it, or give another name"))
    given = [f"--{name}" for name, value in asdict(answers).items() if value is not None]
    if source is not None and given:
        fix = "leave them out, and change the values in the new file"
        raise ConfigError(Problem(f"{', '.join(given)} cannot be given with --from", "sftkit init", fix))
    if source is None and kind:
        raise ConfigError(Problem("--format needs --from", "sftkit init", "add --from FILE"))


def _translate(source: Path, file: Path, kind: str, force: bool, as_json: bool) -> dict[str, Any]:
    """Write the translation of a file; returns what `--json` prints."""
    from sftkit.api import ConfigError, Problem, console
    from sftkit_commands.init.detect import translate
    from sftkit_commands.init.render import as_dict, show, yaml_of

    t = translate(source, file.resolve().parent, kind)
    others = {file.resolve().parent / name: text for name, text in t.files.items()}
    if not force and (there := [path for path in others if path.exists()]):
        fix = "move it away, or replace it with --force"
        raise ConfigError(Problem("the file exists", str(there[0].name), fix))
    for path, text in {file: yaml_of(t, source.name), **others}.items():
        path.write_text(text, encoding="utf-8")
    problems = _problems(file)
    if not as_json:
        screen = console()
        show(screen, t)
        _close(screen, file, list(t.files), problems)
    return {"file": str(file), **as_dict(t), "problems": list(map(asdict, problems))}


def _problems(file: Path) -> list:
    from sftkit.api import Pipeline, SftkitError

    try:
        return list(Pipeline(config=file).check())
    except SftkitError as error:
        return list(error.problems)


def _ask(file: Path, answers: Answers, yes: bool, as_json: bool) -> dict[str, Any]:
    """Write a configuration from answers; returns what `--json` prints."""
    from sftkit.api import console
    from sftkit_commands.init.local import Places
    from sftkit_commands.init.look import Seen, gpu_memory, look
    from sftkit_commands.init.questions import ask, assume, configuration, require_terminal
    from sftkit_commands.init.render import folded, sections

    screen, seen = console(), Seen(())
    here = Places(Path.cwd(), Path.cwd())

    def show_data(model: str, data: str) -> None:
        nonlocal seen
        seen = look(model, data, here)
        for line in () if as_json else seen.lines:
            folded(screen, f"  {line}", "dim")
        for line in () if as_json else seen.problems:
            folded(screen, f"  {line}", "red")

    if yes or as_json:
        answers = assume(answers)
        show_data(str(answers.model), str(answers.data))
    else:
        require_terminal()
        answers = ask(answers, show_data)
    values, comments = configuration(answers, seen.needs_template)
    lines = [
        "# Written by `sftkit init`; all keys: docs/configuration.md, or `sftkit schema`.",
        *sections(values, comments),
    ]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    problems, elsewhere = _problems(file), ""
    if answers.memory and not gpu_memory():
        elsewhere = f"the file is for a machine with a GPU of {answers.memory:g} GB, and this one has none"
    found = {"file": str(file), "config": values, "data": seen.lines, "problems": list(map(asdict, problems))}
    if as_json:
        return {**found, "elsewhere": elsewhere}
    _close(screen, file, [], problems, elsewhere)
    if not yes and not problems and typer.confirm(f"Run `sftkit check {file}` now?", default=True):
        import subprocess
        import sys

        raise typer.Exit(subprocess.call([sys.executable, "-m", "sftkit", "check", str(file)]))
    return found


def _close(screen: Console, file: Path, others: list[str], problems: list, elsewhere: str = "") -> None:
    """Say what was written, what is wrong with it on this machine, and what comes next.

    Args:
        screen: where to print it.
        file: the configuration.
        others: further files that were written.
        problems: what is wrong with the configuration on this machine.
        elsewhere: that it is for another machine, in words; empty if it is for this one.
    """
    from sftkit_commands.init.render import folded, output_of

    names = " and ".join([str(file), *others])
    screen.print(f"\nwritten: {names}", style="bold", markup=False)
    if elsewhere:
        folded(screen, f"{elsewhere}: run `sftkit check {file}` there", "yellow")
    for problem in problems:
        folded(screen, f"{'here' if elsewhere else 'to fix'}: {problem}", "red")
    if not problems:
        screen.print("the configuration is valid", style="green", markup=False)
    screen.print("\nnext:", markup=False)
    run = output_of(file) or "runs/..."
    steps = (
        (f"sftkit check {file}", "data, memory, steps"),
        (f"sftkit preview {file}", "what is trained"),
        (f"sftkit run {file}", "train"),
        (f"sftkit chat {run}", "try the model"),
        (f"sftkit report {run}", "the run as a page"),
    )
    width = max(28, *(len(command) for command, _ in steps))
    for command, what in steps:
        screen.print(f"  {command:<{width}}  {what}", markup=False)
