"""``sftkit check``: everything that can be known before a run."""

from __future__ import annotations

import typer

from sftkit.api import (
    ConfigArguments,
    DataOption,
    JsonOption,
    ModelOption,
    OutputOption,
    PluginOption,
    pipeline_from,
)


def check(
    arguments: ConfigArguments = None,
    plugin: PluginOption = None,
    model: ModelOption = "",
    data: DataOption = "",
    output: OutputOption = "",
    json: JsonOption = False,
) -> None:
    """Check a run before it is started: configuration, data, steps, disk, memory.

    It takes the arguments of `sftkit run`, and reads no weights. The exit code is 2 if the run would be wrong.

        sftkit check sft.yaml
        sftkit check -m Qwen/Qwen3-0.6B -d train.jsonl -p peft
    """
    from sftkit.api import SftkitError, printing_json, show_json, working
    from sftkit_commands.check.checks import failed, run_checks

    with printing_json(json), working("reading the configuration"):
        try:
            report = run_checks(pipeline_from(arguments, plugin, model, data, output))
        except SftkitError as error:
            report = failed("configuration", error.problems)
    if json:
        show_json(report.as_dict())
    else:
        from sftkit_commands.check.text import show_report

        show_report(report)
    raise typer.Exit(2 if report.wrong else 0)
