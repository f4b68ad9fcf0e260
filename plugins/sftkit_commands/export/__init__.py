"""``sftkit export``: what a run has trained, for others to load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import typer

from sftkit.api import DeviceOption, JsonOption, PluginOption, RunArgument, TrustOption

if TYPE_CHECKING:
    from sftkit_commands.export.job import Report

DType = Literal["bfloat16", "float16", "float32"]
GGUFType = Literal["f32", "f16", "bf16", "q8_0"]


def export(
    run: RunArgument,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="New directory, which must not exist or be empty.")],
    merge: Annotated[bool, typer.Option("--merge", help="Merge the adapter into the base model.")] = False,
    dtype: Annotated[
        Optional[DType],  # noqa: UP045
        typer.Option(
            "--dtype",
            metavar="NAME",
            help="Type of the weights: float32, bfloat16 or float16. Default: that of the run.",
        ),
    ] = None,
    quantize: Annotated[
        str, typer.Option("--quantize", metavar="NAME[:OPT=VALUE,...]", help="Quantize with this plugin, such as gptq.")
    ] = "",
    gguf: Annotated[bool, typer.Option("--gguf", help="Also write a GGUF file for llama.cpp.")] = False,
    gguf_type: Annotated[
        Optional[GGUFType],  # noqa: UP045
        typer.Option(
            "--gguf-type",
            metavar="NAME",
            help="Type of the matrices in the GGUF file: f32, f16, bf16 or q8_0. Default: that of the weights.",
        ),
    ] = None,
    ollama: Annotated[
        bool, typer.Option("--ollama", help="Also write a GGUF file and a Modelfile for Ollama.")
    ] = False,
    push_to_hub: Annotated[
        str,
        typer.Option(
            "--push-to-hub", metavar="NAME", help="Upload the directory to this repository; a new one is private."
        ),
    ] = "",
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
    data: Annotated[
        str,
        typer.Option(
            "--data", "-d", metavar="NAME", help="Compare on this data instead of that of the run: file or hub name."
        ),
    ] = "",
    rows: Annotated[int, typer.Option("--rows", "-n", metavar="N", min=1, help="Number of rows to compare on.")] = 16,
    plugin: PluginOption = None,
    device: DeviceOption = "cpu",
    trust_remote_code: TrustOption = False,
    json: JsonOption = False,
) -> None:
    """Export the model of a run as an adapter or merged, quantized, as GGUF, for Ollama or to the hub.

    The model that is written is read back, and compared with that of the run:

        sftkit export runs/first --to merged --merge
        sftkit export runs/first --to ollama --ollama --gguf-type q8_0
    """
    from sftkit.api import printing_json, show_json
    from sftkit_commands.export.job import Wanted, export as do

    wanted = Wanted(
        run, to, merge, dtype, quantize, gguf, gguf_type, ollama, push_to_hub, public, data, rows,
        plugin or (), device, trust_remote_code,
    )  # fmt: skip
    with printing_json(json):
        report, sizes = do(wanted)
    if json:
        show_json(as_dict(report, sizes, to))
    else:
        _show(report, sizes, to)


def as_dict(report: Report, sizes: dict[str, int], to: Path) -> dict[str, Any]:
    """Plain data, for ``--json``."""
    return {
        "directory": str(to),
        "kind": report.kind,
        "dtype": report.dtype,
        "files": sizes,
        "bytes": sum(sizes.values()),
        "rows": report.rows,
        "proof": {name: found.as_dict() for name, found in report.proof.items()},
        "gguf": report.gguf,
        "notes": report.notes,
        "pushed": report.pushed,
    }


def _show(report: Report, sizes: dict[str, int], to: Path) -> None:
    from sftkit.api import console, show_table, size_text

    screen = console()
    show_table(screen, "Files", ("file", "size"), [(name, size_text(size)) for name, size in sizes.items()])
    if report.proof:
        rows = [
            (name, f"{found.agreement:.2%}", f"{found.difference:.2g}", f"{found.relative:.2g}")
            for name, found in report.proof.items()
        ]
        columns = ("compared", "same next token", "largest logit difference", "in std")
        screen.print()
        show_table(screen, f"Compared on {report.rows}", columns, rows)
    for note in report.notes:
        screen.print(f"note: {note}", markup=False)
    named = f"{report.kind}, {report.dtype}" if report.dtype else report.kind
    screen.print(f"exported to {to} ({named})", markup=False)
    if report.pushed:
        screen.print(f"uploaded to {report.pushed}", markup=False)
