"""Each message on the page on troubleshooting is one that sftkit, or the library that the page names, really prints."""

from __future__ import annotations

import ast
import errno
import importlib.util
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Messages of compiled code, which is not installed without a GPU.
COMPILED = {"CUDA out of memory", "CUDA error: device-side assert triggered", "NCCL error"}
#: The module of a library that has a message.
OF_LIBRARIES = {
    "Torch not compiled with CUDA enabled": "torch/cuda/__init__.py",
    "Cannot access gated repo": "huggingface_hub/utils/_http.py",
    "Token indices sequence length is longer than the specified maximum sequence length for this model": (
        "transformers/tokenization_utils_base.py"
    ),
    "lora.ParamWrapper does not work with lora_dropout != 0.": "peft/tuners/lora/layer.py",
}
#: Messages of Python and of the operating system, as they give them.
PRODUCED = {
    "No space left on device": lambda: os.strerror(errno.ENOSPC),
    "Too many open files": lambda: os.strerror(errno.EMFILE),
    "got an unexpected keyword argument": lambda: str(_raised(lambda: _takes_nothing(**{"no_such_option": 1}))),
}


def _takes_nothing() -> None: ...


def _raised(call: Callable[[], object]) -> Exception:
    with pytest.raises(TypeError) as raised:
        call()
    return raised.value


def messages() -> list[str]:
    """The first cell of each row of the page's tables."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)


def literals(path: Path) -> set[str]:
    """The texts in a module, with a NUL character for each value in an f-string or a log line."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            found.add("".join(str(v.value) if isinstance(v, ast.Constant) else "\0" for v in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(re.sub(r"%[\d.]*[sdf]|\{\w*\}", "\0", node.value))
    return found


@pytest.fixture(scope="module")
def own() -> list[str]:
    """All texts of sftkit, its plugins and its commands."""
    paths = [path for folder in ("sftkit", "plugins") for path in (ROOT / folder).rglob("*.py")]
    return sorted(set().union(*map(literals, paths)))


def pattern(message: str) -> re.Pattern[str]:
    """Matches a text that has the literal parts of a message in their order, with something between them."""
    return re.compile(".*".join(map(re.escape, message.split("..."))), re.DOTALL)


@pytest.mark.parametrize("message", [each for each in messages() if each not in {*OF_LIBRARIES, *COMPILED, *PRODUCED}])
def test_a_message_of_sftkit_is_in_its_source(message, own):
    assert any(pattern(message.strip(". ")).search(text) for text in own)


@pytest.mark.parametrize(("message", "path"), OF_LIBRARIES.items())
def test_a_message_of_a_library_is_in_its_source(message, path):
    package = importlib.util.find_spec(path.partition("/")[0])
    assert package is not None
    assert package.origin is not None
    source = Path(package.origin).parents[1] / path
    assert any(message in text.replace("\0", "lora.ParamWrapper") for text in literals(source))


@pytest.mark.parametrize("message", PRODUCED)
def test_a_message_of_the_system_is_what_it_says(message):
    assert message in PRODUCED[message]()


def test_the_page_has_each_message_once_and_those_of_libraries():
    listed = messages()
    assert len(listed) >= 60
    assert len(set(listed)) == len(listed)
    assert {*OF_LIBRARIES, *COMPILED, *PRODUCED} <= set(listed)


def test_an_invented_message_would_be_noticed(own):
    assert not any(pattern("no such ... as this one").search(text) for text in own)
