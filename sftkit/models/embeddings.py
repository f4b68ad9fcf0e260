"""Embedding rows and special tokens, on which a model and its tokenizer must agree."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sftkit.errors import ConfigError, Problem
from sftkit.models.inspect import has_adapter

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Standard deviation of new rows around the mean row, as a fraction of that of the old rows, dimension by dimension.
NOISE = 0.1


def grow_embeddings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    new_token_ids: list[int],
    pad_to_multiple_of: int | None = None,
) -> None:
    """Give every token of the tokenizer a row in the model's embeddings; no row is ever removed. Changes the model.

    Rows of new tokens become the mean of the old tokens' rows plus a little noise that is the same in every run. This
    holds for reserved rows too: they were never trained, and their scale is arbitrary.

    Args:
        model: the model as loaded.
        tokenizer: the run's tokenizer.
        new_token_ids: ids of the tokens that were added to the tokenizer.
        pad_to_multiple_of: round the number of rows up to a multiple of this.

    Raises:
        ConfigError: if tokens are new to a model with an adapter, which would leave their rows untrained.

    Source: Hewitt, "Initializing New Word Embeddings for Pretrained Language Models" (2021), for the mean.
    """
    if new_token_ids and has_adapter(model):
        what = f"{len(new_token_ids)} tokens are new to the adapter, and their embeddings would stay untrained"
        fix = "use the tokenizer that was saved with the adapter, or drop the plugin that adds the tokens"
        raise ConfigError(Problem(what, "model", fix))
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


def table_weights(model: Any) -> list[Any]:
    """The weights that have a row for each token, and their biases."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    return [weight for module in modules if module is not None for weight in module.parameters(recurse=False)]


def _fill_rows(weight: Tensor, new: list[int], known: list[int]) -> None:
    """Sets rows of ``weight`` (``[V, D]``) to the mean of the known ones plus noise, whatever the global seed."""
    import torch

    old = weight.data[known].float()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(new), weight.shape[1], generator=generator).to(old.device)
    weight.data[new] = (old.mean(dim=0) + NOISE * old.std(dim=0) * noise).to(weight.dtype)


def align_special_tokens(model: Any, tokenizer: PreTrainedTokenizerBase, changed: bool) -> None:
    """Copy the ids of the tokenizer's special tokens into the model's configurations. Changes these.

    If plugins changed the tokenizer's, generation stops at the new EOS and at the old ones. A pad token that equals
    EOS goes into the generation configuration only: in the model's configuration it would become the ``padding_idx``
    of the embedding when the model is loaded again, and EOS would get no gradient.

    Args:
        model: the model, with or without an adapter.
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
    """The new EOS and then the old ones; an int if there is only one."""
    before = [] if old is None else [old] if isinstance(old, int) else list(old)
    ends = list(dict.fromkeys(([] if eos is None else [eos]) + before))
    return ends[0] if len(ends) == 1 else (ends or None)


def split_processor(loaded: Any) -> tuple[PreTrainedTokenizerBase, Any]:
    """The tokenizer and the processor that were loaded; None for the processor if a bare tokenizer was.

    A processor's tokenizer gets the processor's chat template. Changes the tokenizer.
    """
    from transformers import PreTrainedTokenizerBase

    if isinstance(loaded, PreTrainedTokenizerBase):
        return loaded, None
    from transformers import ProcessorMixin  # which imports torch

    if not isinstance(loaded, ProcessorMixin):
        return loaded, None
    tokenizer = loaded.tokenizer
    if loaded.chat_template is not None:
        tokenizer.chat_template = loaded.chat_template
    return tokenizer, loaded
