"""A model beside its tokenizer: embedding rows and special tokens they must agree on, and looking without touching."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sftkit.errors import ConfigError, Problem

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Standard deviation of a new row around the mean row, as a fraction of the old rows' own, dimension by dimension.
NOISE = 0.1


def grow_embeddings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    new_token_ids: list[int],
    pad_to_multiple_of: int | None = None,
) -> None:
    """Give every token of the tokenizer a row in the model's embeddings, and never take one away. Changes the model.

    Rows of new tokens become the mean of the old tokens' rows plus a little noise that is the same in every run,
    whether the row is new or was reserved: a reserved row was never trained, and its scale is arbitrary.

    Args:
        model: the model as loaded.
        tokenizer: the run's tokenizer.
        new_token_ids: ids of the tokens that were added to the tokenizer.
        pad_to_multiple_of: round the number of rows up to a multiple of this.

    Raises:
        ConfigError: if tokens are new to a model that already carries an adapter, which would leave them untrained.

    Source: Hewitt, "Initializing New Word Embeddings for Pretrained Language Models" (2021), for the mean.
    """
    if new_token_ids and hasattr(model, "peft_config"):
        what = (
            f"the adapter was trained without {len(new_token_ids)} of the tokens, whose embeddings would stay untrained"
        )
        mend = "keep the tokenizer that was saved with the adapter, or drop the plugin that adds the tokens"
        raise ConfigError(Problem(what, "model", mend))
    old_rows = model.get_input_embeddings().weight.shape[0]
    tokens = max(tokenizer.get_vocab().values(), default=-1) + 1
    rows = max(old_rows, tokens)
    if pad_to_multiple_of:
        rows = -(-rows // pad_to_multiple_of) * pad_to_multiple_of
    if rows > old_rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    new = sorted({*new_token_ids, *range(old_rows, rows)})
    if not new:
        return
    known = sorted({*range(min(old_rows, tokens))} - {*new})
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    _fill_rows(embedding.weight, new, known)
    if head is not None and head.weight is not embedding.weight:
        _fill_rows(head.weight, new, known)
    if head is not None and getattr(head, "bias", None) is not None:
        head.bias.data[new] = head.bias.data[known].mean()


def _fill_rows(weight: Tensor, new: list[int], known: list[int]) -> None:
    """Sets rows of ``weight`` (``[V, D]``) to the mean of the known ones plus noise from a generator of its own."""
    import torch

    old = weight.data[known].float()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(new), weight.shape[1], generator=generator).to(old.device)
    weight.data[new] = (old.mean(dim=0) + NOISE * old.std(dim=0) * noise).to(weight.dtype)


def align_special_tokens(model: Any, tokenizer: PreTrainedTokenizerBase, changed: bool) -> None:
    """Let the model's configuration name the tokenizer's special tokens. Changes the model's configurations.

    Where the tokenizer's were changed, generation stops at the new end of text and at the old ones. A pad token that
    equals EOS goes into the generation configuration only: in the model's own it would be the ``padding_idx`` of the
    embedding after a reload, and the end of text would get no gradient.

    Args:
        model: the model, bare or with an adapter.
        tokenizer: the run's tokenizer.
        changed: whether plugins changed its special tokens.
    """
    eos, bos, pad = tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id
    config, generation = model.config.get_text_config(), getattr(model, "generation_config", None)
    if pad is not None and pad != eos and (changed or getattr(config, "pad_token_id", None) is None):
        config.pad_token_id = pad
    if changed:
        config.eos_token_id, config.bos_token_id = eos, bos
    if generation is None:
        return
    if changed:
        generation.eos_token_id = _ends(eos, generation.eos_token_id)
        generation.bos_token_id = bos
    if changed or generation.pad_token_id is None:
        generation.pad_token_id = eos if pad is None else pad


def _ends(eos: int | None, old: int | Iterable[int] | None) -> int | list[int] | None:
    """The new end of text first and the old ones after it; a bare id where there is just one."""
    before = [] if old is None else [old] if isinstance(old, int) else list(old)
    ends = list(dict.fromkeys(([] if eos is None else [eos]) + before))
    return ends[0] if len(ends) == 1 else (ends or None)


def split_processor(loaded: Any) -> tuple[PreTrainedTokenizerBase, Any]:
    """A tokenizer alone, or a processor's tokenizer and the processor; the chat template is that of either."""
    from transformers import ProcessorMixin

    if not isinstance(loaded, ProcessorMixin):
        return loaded, None
    tokenizer = loaded.tokenizer
    if loaded.chat_template is not None:
        tokenizer.chat_template = loaded.chat_template
    return tokenizer, loaded


def save_adapter_only(model: Any) -> None:
    """Keep peft from storing whole resized embeddings beside an adapter that holds the new rows. Changes the model.

    Args:
        model: a PeftModel; its ``save_pretrained`` is bound to ``save_embedding_layers=False``.
    """
    model.save_pretrained = functools.partial(model.save_pretrained, save_embedding_layers=False)


def linear_names(model: nn.Module) -> list[str]:
    """The last parts of the names of a model's linear layers, each once, in the model's order."""
    names = (name.rpartition(".")[2] for name, module in model.named_modules() if is_linear(module))
    return list(dict.fromkeys(names))


#: Modules inside a vision tower that lead from it to the language model.
_PROJECTORS = ("merger", "deepstack_merger_list")

Part = Literal["language", "vision", "projector"]


def parts_of(model: Any) -> dict[str, Part]:
    """Which part of a model that sees pictures each of its layers is: vision tower, language model, or between them.

    Args:
        model: a PreTrainedModel without adapters; one that sees no pictures is all language.

    Returns:
        By name, each module that has weights of its own, or nothing inside it.
    """
    names = {id(module): name for name, module in model.named_modules()}
    tower, decoder = (names[id(part)] for part in (model.get_encoder(modality="image"), model.get_decoder()))
    head = model.get_output_embeddings()
    parts: dict[str, Part] = {}
    for name, module in model.named_modules():
        if any(True for _ in module.children()) and not any(True for _ in module.parameters(recurse=False)):
            continue
        if not tower or module is head or _inside(name, decoder):
            parts[name] = "language"
        elif _inside(name, tower):
            below = name.removeprefix(tower).split(".")
            parts[name] = "projector" if any(part in _PROJECTORS for part in below) else "vision"
        else:
            parts[name] = "projector"
    return parts


def _inside(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer, whoever made it."""
    # By name, since quantized layers and GPT-2's Conv1D are no subclass of nn.Linear.
    return "Linear" in type(module).__name__ or type(module).__name__ == "Conv1D"


def quantization_of(name: str) -> dict[str, Any] | None:
    """The quantization of a local checkpoint, or of the base of a local adapter; None where it has none."""
    try:
        if Path(name, "adapter_config.json").is_file():
            name = json.loads(Path(name, "adapter_config.json").read_text("utf-8"))["base_model_name_or_path"]
        config = json.loads(Path(name, "config.json").read_text("utf-8"))
        found: dict[str, Any] | None = config.get("quantization_config")
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # the loader tells what is wrong with these files


def autocast_type(train: Mapping[str, Any]) -> torch.dtype | None:
    """The type of mixed precision that the section ``train`` asks for; None where training runs without autocast."""
    import torch

    return torch.bfloat16 if train.get("bf16") else torch.float16 if train.get("fp16") else None


@contextmanager
def undisturbed(model: Any, autocast: torch.dtype | None = None) -> Iterator[None]:
    """Eval mode without gradients; each module's own mode and the random state are put back.

    Args:
        model: the model.
        autocast: type of mixed precision; the Trainer turns it on only when training starts.
    """
    import torch

    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    mixed = nullcontext() if autocast is None else torch.autocast(device.type, autocast)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad(), mixed:
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
