"""``sftkit distill-rows``: store what a teacher says about the trained tokens of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer

from sftkit.api import (
    ConfigArguments,
    DataOption,
    DeviceOption,
    DTypeOption,
    JsonOption,
    ModelOption,
    PluginOption,
    TrustOption,
    pipeline_from,
)

if TYPE_CHECKING:
    from sftkit_commands.distill_rows.write import Written


def distill_rows(
    arguments: ConfigArguments = None,
    teacher: Annotated[
        str, typer.Option("--teacher", metavar="NAME", help="A run, a directory with a model, or a hub name.")
    ] = "",
    to: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--to", metavar="DIR", help="New directory, which must not exist or be empty."),
    ] = None,
    top: Annotated[
        int, typer.Option("--top", "-k", min=1, metavar="K", help="Number of most likely tokens to store.")
    ] = 64,
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="T", help="Divides the logits, as in the run that uses the rows.")
    ] = 1.0,
    values: Annotated[
        Literal["float16", "float32"], typer.Option("--values", metavar="NAME", help="Type of the log-probabilities.")
    ] = "float16",
    batch_tokens: Annotated[
        int, typer.Option("--batch-tokens", min=1, metavar="N", help="Tokens of a batch, with padding.")
    ] = 8192,
    loader: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--loader", metavar="NAME[:OPT=VALUE,...]", help="A plugin that loads the teacher, such as bitsandbytes."
        ),
    ] = None,
    dtype: DTypeOption = "",
    device: DeviceOption = "",
    trust_remote_code: TrustOption = False,
    plugin: PluginOption = None,
    model: ModelOption = "",
    data: DataOption = "",
    json: JsonOption = False,
) -> None:
    """Run a teacher once over the data of a run, and store its top tokens for the plugin distill.

    It takes the configuration of `sftkit run`, and reads no weights of the student:

        sftkit distill-rows sft.yaml --teacher big --to rows -k 64
        sftkit run sft.yaml -p distill:rows=rows
    """
    from sftkit.api import ConfigError, Problem, printing_json, show_json, working
    from sftkit_commands.distill_rows.write import Wanted, write

    missing = [name for name, value in (("--teacher", teacher), ("--to", to)) if not value]
    if missing or to is None:
        problems = [Problem("this option is required", f"sftkit distill-rows {name}", "set it") for name in missing]
        raise ConfigError(problems)
    if not temperature > 0:
        raise ConfigError(Problem(f"{temperature:g} is not above 0", "--temperature", "use 1, or a larger number"))
    if not any(argument.startswith("model.init=") for argument in arguments or []):
        arguments = [*(arguments or []), "model.init=random"]  # the student's weights may be elsewhere
    wanted = Wanted(
        teacher, to, top, temperature, values, batch_tokens, tuple(loader or ()), dtype, device, trust_remote_code
    )
    with printing_json(json), working("reading the configuration"):
        done = write(pipeline_from(arguments, [*(plugin or []), "no:distill"], model, data), wanted)
    if json:
        show_json(done._asdict())
    else:
        _show(done)


def _show(done: Written) -> None:
    from sftkit.api import console, size_text

    screen = console()
    screen.print(
        f"top {done.top} of {done.teacher} for {done.tokens:,} trained tokens of {done.documents:,} documents: "
        f"{size_text(done.bytes)} in {done.directory}",
        markup=False,
    )
    screen.print(f"they have {done.kept:.2%} of its probability, and the rest counts as one token", markup=False)
    at = "" if done.temperature == 1 else f",temperature={done.temperature:g}"
    screen.print(f"Use them with -p distill:rows={done.directory}{at}", markup=False)
