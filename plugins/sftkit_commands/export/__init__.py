"""``sftkit export``: what a run has trained, for others to load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import typer

from sftkit.api import PluginOption

if TYPE_CHECKING:
    from sftkit_commands.export.job import Report

DType = Literal["bfloat16", "float16", "float32"]
GGUFType = Literal["f32", "f16", "bf16", "q8_0"]


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run directory, checkpoint, or any other model.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="New directory, which must not exist or be empty.")],
    merge: Annotated[bool, typer.Option("--merge", help="Merge the adapter into the base model.")] = False,
    dtype: Annotated[Optional[DType], typer.Option("--dtype", help="Type of the weights.")] = None,  # noqa: UP045
    quantize: Annotated[
        str, typer.Option("--quantize", metavar="NAME[:OPT=VALUE,...]", help="Quantize by this plugin: gptq.")
    ] = "",
    gguf: Annotated[bool, typer.Option("--gguf", help="Write a GGUF file for llama.cpp too.")] = False,
    gguf_type: Annotated[
        Optional[GGUFType],  # noqa: UP045
        typer.Option("--gguf-type", help="Type of its matrices; by default that of the weights."),
    ] = None,
    ollama: Annotated[bool, typer.Option("--ollama", help="Write a GGUF file and a Modelfile too.")] = False,
    push_to_hub: Annotated[
        str, typer.Option("--push-to-hub", metavar="NAME", help="Upload it to this repository, made as a private one.")
    ] = "",
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
    data: Annotated[
        str, typer.Option("--data", "-d", help="Rows to compare on instead of those of the run: file or hub name.")
    ] = "",
    rows: Annotated[int, typer.Option("--rows", min=1, help="Number of rows to compare on.")] = 16,
    plugin: PluginOption = None,
    device: Annotated[str, typer.Option("--device", help="Where the model is loaded, such as cuda.")] = "cpu",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Allow running code that comes with the model.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Export the model of a run: adapter or merged, quantized, as GGUF, for Ollama, to the hub; it is proved."""
    from sftkit_commands.export.job import Wanted, export as do

    wanted = Wanted(
        run, to, merge, dtype, quantize, gguf, gguf_type, ollama, push_to_hub, public, data, rows,
        plugin or (), device, trust_remote_code,
    )  # fmt: skip
    report, sizes = do(wanted)
    if json:
        import json as library

        typer.echo(library.dumps(as_dict(report, sizes, to)))
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
    from sftkit.api import console, show_table

    screen = console()
    show_table(screen, "Files", ("file", "size"), [(name, _bytes(size)) for name, size in sizes.items()])
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


def _bytes(size: int) -> str:
    """A number of bytes for people."""
    unit = next((unit for unit in (1e9, 1e6, 1e3) if size >= unit), 1)
    return f"{size / unit:.3g} {({1e9: 'GB', 1e6: 'MB', 1e3: 'kB'}).get(unit, 'bytes')}"
