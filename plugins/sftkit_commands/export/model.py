"""What is written of a model: the model itself, or its adapter, with the tokenizer; and how it is read back."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.api import BASE_CONFIG, ConfigError, Problem, RunError

if TYPE_CHECKING:
    from sftkit.api import TrainedModel

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
PROCESSOR = ("processor_config.json", "preprocessor_config.json")
PROBE = (
    [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Good day."}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "One?"}],
)


def write_model(model: Any, trained: TrainedModel, target: Path) -> None:
    """Write a model with its tokenizer, or its processor."""
    with quiet():
        model.save_pretrained(target)
    (trained.processor or trained.tokenizer).save_pretrained(target)


def write_adapter(source: Path, target: Path) -> Any:
    """Copy an adapter, with the tokenizer of its directory or else of its base; returns the tokenizer.

    Raises:
        ConfigError: if its weights are not there.
    """
    from transformers import AutoProcessor, AutoTokenizer

    if not (source / ADAPTER[1]).is_file():
        what = "there is no adapter_model.safetensors"
        raise ConfigError(Problem(what, str(source), "save the adapter again with peft's save_pretrained"))
    for name in (*ADAPTER, *([BASE_CONFIG] if (source / BASE_CONFIG).is_file() else [])):
        shutil.copyfile(source / name, target / name)
    processor = any((source / name).is_file() for name in PROCESSOR)
    loaded = (AutoProcessor if processor else AutoTokenizer).from_pretrained(source)
    loaded.save_pretrained(target)
    return loaded


def read_back(directory: Path, trained: TrainedModel, trust_remote_code: bool) -> tuple[Any, Any]:
    """The model and the tokenizer of a directory, loaded by transformers alone."""
    from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, AutoTokenizer

    auto = AutoModelForCausalLM if trained.processor is None else AutoModelForMultimodalLM
    with quiet():
        model, info = auto.from_pretrained(
            directory, output_loading_info=True, trust_remote_code=trust_remote_code, use_safetensors=True
        )
    if wrong := sorted([*info["missing_keys"], *info["unexpected_keys"]]):
        raise RunError(Problem(f"weights are missing, or have no place: {', '.join(wrong[:4])}", str(directory)))
    return model.eval(), AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)


def require_same_tokenizer(written: Any, read: Any, ids: list[list[int]]) -> None:
    """Check that a tokenizer that was read back has the tokens and the chat template of the one that was written.

    Args:
        written: the tokenizer of the training.
        read: the one that was read back.
        ids: rows whose text is tokenized by both.

    Raises:
        RunError: if anything differs.
    """
    texts = [written.decode(row) for row in ids]
    same = [
        written.get_vocab() == read.get_vocab(),
        written.special_tokens_map == read.special_tokens_map,
        written.chat_template == read.chat_template,
        [written(text)["input_ids"] for text in texts] == [read(text)["input_ids"] for text in texts],
        written.chat_template is None or list(_rendered(written)) == list(_rendered(read)),
    ]
    if not all(same):
        names = ("vocabulary", "special tokens", "chat template", "tokens of rows", "rendered conversations")
        wrong = ", ".join(name for name, equal in zip(names, same, strict=True) if not equal)
        raise RunError(Problem(f"the tokenizer differs when it is read back: {wrong}", "tokenizer"))


def _rendered(tokenizer: Any) -> Iterator[str]:
    from jinja2.exceptions import TemplateError

    for messages in PROBE:
        for prompted in (False, True):
            try:
                yield tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompted)
            except TemplateError as error:
                yield f"refused: {error}"


def require_same_weights(written: Any, read: Any) -> None:
    """Check that a model that was read back has the weights of the one that was written.

    Raises:
        RunError: if one differs.
    """
    import torch

    ours, theirs = written.state_dict(), read.state_dict()
    wrong = sorted(ours.keys() ^ theirs.keys())
    wrong += [name for name in ours.keys() & theirs.keys() if not torch.equal(ours[name].cpu(), theirs[name])]
    if wrong:
        raise RunError(Problem(f"weights differ when they are read back: {', '.join(wrong[:4])}", "model"))


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars of transformers."""
    from transformers.utils import logging as library

    enabled = library.is_progress_bar_enabled()
    library.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            library.enable_progress_bar()


def say(text: str, *values: Any) -> None:
    """Log what is being done."""
    logging.getLogger("sftkit").info(text, *values)
