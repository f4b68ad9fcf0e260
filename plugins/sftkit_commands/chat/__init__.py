"""``sftkit chat``: talk to the model of a run, or to any other."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from sftkit.api import PluginOption, RunArgument


def chat(
    model: RunArgument = "",
    prompt: Annotated[str, typer.Option("--prompt", help="Answer this and leave.")] = "",
    system: Annotated[str, typer.Option("--system", help="The system message.")] = "",
    compare: Annotated[
        str,
        typer.Option("--compare", metavar="MODEL", help="Show this model's answers too; base: that of the run."),
    ] = "",
    temperature: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="0 is greedy. Default: the model's generation_config.json, else 0."),
    ] = None,
    top_p: Annotated[Optional[float], typer.Option(help="Sample from the most likely tokens up to this sum.")] = None,  # noqa: UP045
    top_k: Annotated[Optional[int], typer.Option(help="Sample from this many of the most likely tokens.")] = None,  # noqa: UP045
    repetition_penalty: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Above 1, tokens that have occurred become less likely."),
    ] = None,
    max_new_tokens: Annotated[Optional[int], typer.Option(help="Tokens of an answer, at most. Default: 512.")] = None,  # noqa: UP045
    seed: Annotated[Optional[int], typer.Option(help="Makes sampled answers the same each time.")] = None,  # noqa: UP045
    template_option: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="NAME=VALUE", help="A variable of the chat template. Repeatable."),
    ] = None,
    form: Annotated[
        str, typer.Option("--format", help="How prompts are written: auto (as in training), chat, prompt or text.")
    ] = "auto",
    base: Annotated[str, typer.Option(metavar="DIR", help="The adapter's base model, if it has moved.")] = "",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16. Default: that of the run.")] = "",
    device: Annotated[str, typer.Option(help="Such as cpu or cuda:1. Default: the first accelerator.")] = "",
    plugin: PluginOption = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object; with --prompt or piped input.")] = False,
) -> None:
    """Chat with a trained model in the terminal. Without a model: the newest run in the directory runs."""
    from sftkit_commands.chat.session import Request, hold

    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    sampling |= {"repetition_penalty": repetition_penalty, "max_new_tokens": max_new_tokens}
    loading: dict[str, Any] = {"base": base or None, "dtype": dtype or None, "device": device or None}
    loading |= {"plugins": tuple(plugin or ()), "trust_remote_code": trust_remote_code}
    prompting = {"form": form, "variables": template_option or []}
    hold(Request(model, prompt, system, compare, sampling, loading, prompting, seed, json))
