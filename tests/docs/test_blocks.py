"""Every command and code block of the documentation is valid: options and plugins exist, keys are known, code compiles.

`test_blocks_run.py` runs them.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import pytest
import typer
import yaml
from doc_blocks import PAGES, ROOT, Block, blocks, call_and_rest, named_files

from sftkit import Pipeline
from sftkit.api import pipeline_from
from sftkit.cli import app
from sftkit.config import RunConfig
from sftkit.errors import SftkitError

tomllib = pytest.importorskip("tomllib")  # Python 3.11
GROUP = typer.main.get_command(app)
LANGUAGES = {"", "sh", "console", "text", "python", "yaml", "json", "toml", "jinja", "mermaid", "diff"}
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
SECTIONS = set(RunConfig.model_fields)
#: Problems of runs that are right elsewhere, or after the commands before them.
ELSEWHERE = re.compile(
    "needs a GPU|needs the package|is not installed|a single process cannot|cannot be divided among"
    "|no such file|there is no directory"
)
MAIN_KEYS = {"name", "train", "mix", "prepared"}


@pytest.fixture(scope="module", autouse=True)
def packages_are_read_once():
    """Reading the metadata of all packages that are installed takes most of the time of a check."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("entry_points", "version"):
            patch.setattr(metadata, name, functools.cache(getattr(metadata, name)))
        read = functools.cache(metadata.Distribution.metadata.fget)
        patch.setattr(metadata.Distribution, "metadata", property(read))
        yield


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_every_block_of_the_page_is_valid(page, directory):
    for name, code in {**named_files("docs/from-trl.md"), **named_files(page)}.items():
        Path(name).write_text(code, encoding="utf-8")
    problems = [f"{block.place}: {problem}" for block in blocks(page) for problem in problems_of(block)]
    wrong = [problem for problem in problems if not ELSEWHERE.search(problem)]
    assert not wrong, "\n".join(wrong)


def problems_of(block: Block) -> Iterator[str]:
    if block.language not in LANGUAGES:
        yield f"no test knows the language {block.language!r}"
    try:
        match block.language:
            case "python":
                ast.parse(block.code)
            case "json":
                for line in [block.code] if _is_json(block.code) else block.code.splitlines():
                    json.loads(line)
            case "toml":
                tomllib.loads(block.code)
            case "jinja":
                jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_generation(block.code))
            case "yaml":
                yield from problems_of_yaml(block.code)
            case "sh" | "console":
                for command in block.commands:
                    yield from (f"{command}: {problem}" for problem in problems_of_command(command))
    except (SyntaxError, ValueError, yaml.YAMLError, jinja2.TemplateError) as error:
        yield f"{type(error).__name__}: {error}"


def problems_of_yaml(text: str) -> Iterator[str]:
    """Of a configuration: unknown sections and keys. Of any other YAML: nothing but its syntax."""
    values = yaml.safe_load(text)
    if isinstance(values, dict) and values.keys() & SECTIONS:
        Path("block.yaml").write_text(text, encoding="utf-8")
        missing = {"model": "model", "data": "train.jsonl", "eval": "eval.jsonl"}
        for name in ("model", "data"):
            if name in values and not (isinstance(values[name], dict) and not values[name].keys() & MAIN_KEYS):
                del missing[name]
        if (isinstance(values.get("data"), dict) and "eval" in values["data"]) or "data" not in missing:
            del missing["eval"]
        pipeline = Pipeline(config="block.yaml", **missing)
        yield from map(str, pipeline.check())


def problems_of_command(command: str) -> Iterator[str]:
    if "<<" in command:  # it writes a file of the reader
        subprocess.run(["sh", "-c", command], check=True)
    words, _ = call_and_rest(command)
    if not words:
        return
    if words[0] == "torchrun" and "sftkit" in words:
        words = words[words.index("sftkit") :]
    if words[0] == "sftkit":
        yield from problems_of_arguments(words[1:])
    elif words[0] == "make":
        yield from (f"no target {word}" for word in words[1:] if "=" not in word and word not in TARGETS)
    elif words[0] == "pip":
        for extras in re.findall(r"(?:sftkit-train|\.)\[(.*?)\]", command):
            yield from (f"no extra {extra}" for extra in extras.split(",") if extra not in EXTRAS)


def problems_of_arguments(arguments: list[str]) -> Iterator[str]:
    """Of a call of sftkit: commands and options that do not exist."""
    if any(re.match(r"\[[A-Z-]|\.\.\.$|[A-Z]{3,}$", word) for word in arguments):
        return  # a synopsis
    try:
        with GROUP.make_context("sftkit", list(arguments)) as context:
            words = [*context._protected_args, *context.args]
            if not words:  # an option of sftkit itself
                return
            name, command, rest = GROUP.resolve_command(context, words)
            if command is None:
                yield f"no command {name}"
            elif name == "launch":
                yield from problems_of_launch(command, rest, context)
            else:
                with command.make_context(name, rest, parent=context) as inner:
                    if name in ("run", "check", "preview", "prepare"):
                        yield from problems_of_run(**inner.params)
    except SftkitError as error:
        yield from map(str, error.problems)
    except (SystemExit, typer.Exit):
        pass
    except Exception as error:
        yield f"{type(error).__name__}: {error}"


def problems_of_run(arguments=None, plugin=None, model="", data="", **_: Any) -> Iterator[str]:
    """Of a run: plugins, keys and values that do not exist, or do not go together."""
    if plugin is None and not any("=" in word or word.endswith(".yaml") for word in arguments or ()):
        return
    if data and not model:  # the model is in the reader's file
        model = "model"
    pipeline = pipeline_from(arguments, plugin, model, data)
    yield from map(str, pipeline.check())


def problems_of_launch(command, rest, context) -> Iterator[str]:
    command.make_context("launch", list(rest), parent=context).close()
    for at, word in enumerate(rest):
        if word in ("run", "prepare", "evaluate"):
            yield from problems_of_arguments(rest[at:])
            return


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _generation(template: str) -> str:
    """A chat template without the marks of generation, which are an extension of transformers."""
    return re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", template)
