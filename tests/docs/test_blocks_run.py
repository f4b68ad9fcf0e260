"""Every command and code block of the documentation runs, page by page, in the order in which a reader meets them.

Runs take two steps, and `sftkit launch` only shows what it would start. What cannot run here says so in the page:
``<!-- not run: needs a GPU -->``. Blocks with the settings of a run are checked by `test_blocks.py`.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doc_blocks import PAGES, RUN_ELSEWHERE, Block, blocks, modules, write_files

pytestmark = pytest.mark.slow

SHORT = ("train.max_steps=2", "train.use_cpu=true", "train.report_to=none")
TRAINS = ("run", "check", "preview", "prepare")
#: What needs packages or machines that a page about them explains, or waits for a person.
NOT_RUN = re.compile(
    r"^(pip|make|pytest|torchrun|python|ray|git|cd|ssh|watch|docker|kubectl|sky|export|conda|accelerate|twine|mkdir)\b"
    r"|sftkit (chat|init$|docs-serve)|--watch|--network|--install-completion|--push-to-hub|--tasks|[A-Z]{3,}\b.*\.\.\."
)
#: Errors of pages that are right on other machines.
ELSEWHERE = re.compile("needs a GPU|needs the package|is not installed|a single process cannot|cannot be divided among")
PRELUDE = """
from datasets import Dataset, load_dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, EarlyStoppingCallback, Trainer
from sftkit import Field, Pipeline, Plugin, dataclass, hookimpl
from sftkit.plugin.registry import discover, load_class

for _name in discover():
    try:
        _class = load_class(_name, discover())
    except Exception:
        continue
    globals()[_class.__name__] = _class

tokenizer = AutoTokenizer.from_pretrained("model")
model = AutoModelForCausalLM.from_pretrained("model")
rows = [{"text": "The quick brown fox. " * 20}] * 20
tokenized = [{"input_ids": tokenizer("### Human: hi ### Assistant: ho")["input_ids"]}] * 4


def score(prediction):
    return {"score": 1.0}


def format_row(row):
    return row["messages"][-1]["content"]
"""


@pytest.fixture
def directory(place, tmp_path, monkeypatch) -> Path:
    """A copy of the directory that the pages assume, as the working directory."""
    shutil.copytree(place, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    for name, value in {"DATA": "train.jsonl", "USER": "me", "SFTKIT_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page) and page not in RUN_ELSEWHERE])
def test_every_block_of_the_page_runs(page, directory, in_process, monkeypatch):
    for name, code in modules(page).items():
        Path(name).write_text(code, encoding="utf-8")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(PRELUDE, namespace)
    problems = []
    for block in blocks(page):
        if not block.not_run:
            problems += [f"{block.place}: {problem}" for problem in problems_of(block, namespace, in_process, page)]
    for name in modules(page):
        sys.modules.pop(Path(name).stem, None)
    assert not problems, "\n\n".join(problems)


def problems_of(block: Block, namespace: dict[str, Any], in_process, page: str) -> Iterator[str]:
    if block.language == "python" and block.code not in modules(page).values():
        try:
            exec(compile(block.code, block.place, "exec"), namespace)
        except BaseException as error:
            if not ELSEWHERE.search(str(error)):
                yield f"{type(error).__name__}: {error}"
    if block.language in ("sh", "console"):
        write_files(block)
        for command in block.commands:
            if not NOT_RUN.search(command):
                yield from problems_of_command(command, in_process)


def problems_of_command(command: str, in_process) -> Iterator[str]:
    words = shlex.split(re.split(r" \| | && | > | 2>", command)[0])
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words[:1] != ["sftkit"]:
        return
    arguments = [*words[1:]]
    for option, word in zip(["", *arguments], arguments, strict=False):
        if option in ("--to", "--from") or (option in ("-o", "--output") and "--resume" not in arguments):
            shutil.rmtree(word, ignore_errors=True)  # the command of another alternative wrote it
        elif (found := re.match(r"runs/\w+", word)) and not (Path(found[0]) / "manifest.json").exists():
            make_run(Path(found[0]), in_process, *(("-p", "peft:r=2") if arguments[0] == "export" else ()))
    if arguments[0] == "init":
        arguments.append("--force")
    if arguments[0] in TRAINS:
        arguments += SHORT
    if arguments[0] == "sweep":
        arguments += SHORT[1:]
    if arguments[0] == "launch":
        arguments.insert(1, "--dry-run")
    code, printed = in_process(*arguments)
    if code and not ELSEWHERE.search(printed):
        yield f"{command}: exit code {code}\n{printed[-1500:]}"


def make_run(path: Path, in_process, *options: str) -> None:
    shutil.rmtree(path, ignore_errors=True)
    code, printed = in_process("run", "sft.yaml", *options, "-o", path, *SHORT)
    assert code == 0, printed
