# ruff: noqa: N806 (suffixes are shapes)
"""NEFTune: uniform noise on the input embeddings while training.

Legend: B rows, T tokens a row, d width of the embeddings.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from sftkit.api import Field, Plugin, Problem, dataclass, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from sftkit.api import RunConfig


@dataclass(frozen=True, kw_only=True)
class NEFTune(Plugin):
    """Adds uniform noise to the input embeddings while training, scaled by each document's own length.

    Source: Jain et al., 2023, NEFTune: Noisy Embeddings Improve Instruction Finetuning (arXiv 2310.05914), algorithm 1.
    """

    replaces: ClassVar[Mapping[str, str]] = {"neftune_noise_alpha": "alpha"}

    alpha: Annotated[float, Field(gt=0, description="scale of the noise; the paper uses 5, 10 and 15")] = 5.0

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """Refuse to add transformers' own noise as well."""
        if config.train.get("neftune_noise_alpha") is not None:
            what = "the noise would be added twice, since the plugin neftune is selected"
            fix = "drop train.neftune_noise_alpha, and set the plugin's alpha"
            yield Problem(what, "train.neftune_noise_alpha", fix, ("train", "neftune_noise_alpha"))

    @hookimpl
    def inject_noise(self, model: Any) -> AbstractContextManager[None]:
        """Noise inside the context while ``model.training``; its exit removes every hook."""
        return noisy_embeddings(model, self.alpha)


@contextmanager
def noisy_embeddings(model: Any, alpha: float) -> Iterator[None]:
    """Add noise within ``± alpha / sqrt(L * d)`` to the embeddings ``[B, T, d]``, L tokens in a token's document."""
    import torch

    call = threading.local()  # arguments of the current forward; DataParallel runs one in each thread

    def remember(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        call.position_ids, call.attention_mask = kwargs.get("position_ids"), kwargs.get("attention_mask")

    def forget(*_: Any) -> None:
        call.__dict__.clear()

    def add_noise(_: Any, args: Any, embedded: Tensor) -> Tensor | None:
        if not model.training:
            return None
        position_ids, attention_mask = (getattr(call, name, None) for name in ("position_ids", "attention_mask"))
        lengths_BT, real_BT = document_lengths(embedded, position_ids, attention_mask)
        bound_BT = alpha * real_BT / (lengths_BT * embedded.shape[-1]).sqrt()
        noise = torch.empty_like(embedded).uniform_(-1, 1)
        return embedded + noise * bound_BT.unsqueeze(-1).to(embedded.dtype)

    with ExitStack() as hooks:
        hooks.callback(model.register_forward_pre_hook(remember, with_kwargs=True).remove)
        hooks.callback(model.register_forward_hook(forget, always_call=True).remove)
        hooks.callback(model.get_input_embeddings().register_forward_hook(add_noise).remove)
        yield


def document_lengths(
    embedded: Tensor, position_ids: Tensor | None, attention_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """For each token: the number of real tokens in its document (at least 1), and whether it is real (0 or 1).

    Args:
        embedded: ``[B, T, d]``.
        position_ids: ``[B, T]`` or ``[1, T]``; a document starts at each 0, and at the start of a row. Without them, a
            row is one document.
        attention_mask: ``[B, T]``, 0 where padding. Masks of other shapes are ignored.

    Returns:
        Two float tensors ``[B, T]``.
    """
    import torch

    rows, columns = embedded.shape[:2]
    real_BT = torch.ones(rows, columns, device=embedded.device)
    if attention_mask is not None and attention_mask.shape == (rows, columns):
        real_BT = (attention_mask != 0).to(real_BT)
    document_BT = torch.zeros(rows, columns, dtype=torch.long, device=embedded.device)
    if position_ids is not None and position_ids.dim() == 2 and position_ids.shape[1] == columns:
        # Column 0 always starts a document, also in a row that was cut inside one.
        starts_BT = (position_ids[:, 1:].to(embedded.device) == 0).expand(rows, columns - 1)
        document_BT[:, 1:] = starts_BT.cumsum(1)
    lengths_BT = torch.zeros_like(real_BT).scatter_add(1, document_BT, real_BT).gather(1, document_BT)
    return lengths_BT.clamp(min=1), real_BT
