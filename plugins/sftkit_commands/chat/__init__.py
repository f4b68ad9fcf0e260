"""``sftkit chat``: talk to the model of a run, or to any other."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from sftkit.api import DeviceOption, DTypeOption, JsonOption, PluginOption, RunArgument, TrustOption

# Optional[...] and not `| None`: Typer reads these on Python 3.10 too.


def chat(
    model: RunArgument = "",
    prompt: Annotated[str, typer.Option("--prompt", metavar="TEXT", help="Answer this prompt, and exit.")] = "",
    system: Annotated[str, typer.Option("--system", metavar="TEXT", help="System message.")] = "",
    compare: Annotated[
        str,
        typer.Option("--compare", metavar="MODEL", help="Show the answers of this model too; `base`: that of the run."),
    ] = "",
    temperature: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            metavar="X", help="0 always takes the likeliest token. Default: the model's generation_config.json, else 0."
        ),
    ] = None,
    top_p: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(metavar="X", help="Sample from the likeliest tokens whose probabilities add up to this."),
    ] = None,
    top_k: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(metavar="N", help="Sample from this many of the likeliest tokens."),
    ] = None,
    repetition_penalty: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(metavar="X", help="Above 1, tokens that have occurred become less likely."),
    ] = None,
    max_new_tokens: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(metavar="N", help="Maximum number of tokens of an answer. Default: 512."),
    ] = None,
    seed: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(metavar="N", help="Makes sampled answers the same each time."),
    ] = None,
    template_option: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="NAME=VALUE", help="A variable of the chat template. Repeatable."),
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format", metavar="NAME", help="How prompts are written: auto (as in training), chat, prompt or text."
        ),
    ] = "auto",
    base: Annotated[str, typer.Option(metavar="NAME", help="The adapter's base model, if it has moved.")] = "",
    dtype: DTypeOption = "",
    device: DeviceOption = "",
    plugin: PluginOption = None,
    trust_remote_code: TrustOption = False,
    json: JsonOption = False,
) -> None:
    """Chat with a trained model in the terminal. Without a model: with that of the newest run in runs/.

    With `--prompt`, or with a prompt on standard input, it answers this one and exits:

        sftkit chat runs/first
        sftkit chat runs/first --compare base
        sftkit chat runs/first --prompt "What comes after May?" --json
    """
    from sftkit_commands.chat.session import Request, hold

    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    sampling |= {"repetition_penalty": repetition_penalty, "max_new_tokens": max_new_tokens}
    loading: dict[str, Any] = {"base": base or None, "dtype": dtype or None, "device": device or None}
    loading |= {"plugins": tuple(plugin or ()), "trust_remote_code": trust_remote_code}
    prompting = {"form": form, "variables": template_option or []}
    hold(Request(model, prompt, system, compare, sampling, loading, prompting, seed, json))
