"""Every command and code block of the documentation runs, page by page, in the order in which a reader meets them.

Runs take two steps, and `sftkit launch` only shows what it would start. What cannot run here says so in the page:
``<!-- not run: needs a GPU -->``. Blocks with the settings of a run are checked by `test_blocks.py`.
"""

from __future__ import annotations

import glob
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from doc_blocks import PAGES, RUN_ELSEWHERE, Block, blocks, call_and_rest, named_files

from sftkit.cli import main

pytestmark = pytest.mark.slow

SHORT = ("train.max_steps=2", "train.use_cpu=true", "train.report_to=none")
TRAINS = ("run", "check", "preview", "prepare")
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
def sftkit(monkeypatch, capfd) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process: exit code, output and errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sftkit", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capfd.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return call


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page) and page not in RUN_ELSEWHERE])
def test_every_block_of_the_page_runs(page, directory, sftkit):
    for name, code in named_files(page).items():
        Path(name).write_text(code, encoding="utf-8")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(PRELUDE, namespace)
    problems = []
    for block in blocks(page):
        if block.not_run:
            continue
        if block.language == "python" and block.code not in named_files(page).values():
            problems += [f"{block.place}: {problem}" for problem in problems_of_code(block, namespace)]
        if block.language in ("sh", "console"):
            for command in block.commands:
                problems += [f"{block.place}: {problem}" for problem in problems_of_command(command, sftkit)]
    assert not problems, "\n\n".join(problems)


def problems_of_code(block: Block, namespace: dict[str, Any]) -> Iterator[str]:
    try:
        exec(compile(block.code, block.place, "exec"), namespace)
    except (Exception, SystemExit) as error:
        yield f"{type(error).__name__}: {error}"


def problems_of_command(command: str, sftkit) -> Iterator[str]:
    """Run a command: sftkit in this process, and what a pipe makes of its output, as all else, in a shell."""
    (program, *arguments), rest = call_and_rest(command)
    printed = ""
    if program == "sftkit":
        code, printed, errors = sftkit(*for_two_steps(arguments, sftkit))
        if code:
            yield f"{command}: exit code {code}\n{printed[-1500:]}{errors[-1500:]}"
        command = f"cat {rest}" if rest and rest[0] != "#" else ""
    if command and program != "pip":
        done = subprocess.run(["bash", "-c", command], input=printed, capture_output=True, text=True, timeout=100)
        if done.returncode:
            yield f"{command}: exit code {done.returncode}\n{done.stderr}"


def for_two_steps(arguments: list[str], sftkit) -> list[str]:
    """The arguments of a short run; makes the runs that they need, and removes what another alternative wrote."""
    arguments = [each for word in arguments for each in (glob.glob(word) or [word])]
    for option, word in zip(["", *arguments], arguments, strict=False):
        run = re.match(r"runs/[\w-]+", word)
        if option in ("--to", "--from") or (option in ("-o", "--output") and "--resume" not in arguments):
            shutil.rmtree(word, ignore_errors=True)
        elif run and not [*Path(run[0]).rglob("manifest.json")]:
            shutil.rmtree(run[0], ignore_errors=True)
            adapter = ("-p", "peft:r=2") if arguments[0] == "export" else ()
            code, *printed = sftkit("run", "sft.yaml", *adapter, "-o", run[0], *SHORT)
            assert code == 0, printed
    for commands, more in ((TRAINS, SHORT), (("sweep",), SHORT[1:]), (("init",), ["--force"])):
        arguments += more if arguments[0] in commands else ()
    return ["launch", "--dry-run", *arguments[1:]] if arguments[0] == "launch" else arguments
