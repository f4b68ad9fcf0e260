"""A model that answers: token by token, with a cache of what it has read, until its turn ends."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from tokenizers.decoders import DecodeStream
from transformers import DynamicCache, GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import DynamicLayer
from transformers.generation.streamers import BaseStreamer

from sftkit.api import ConfigError, Problem, TrainedModel, base_model, end_token_ids, has_adapter, position_limit

if TYPE_CHECKING:
    from sftkit_commands.chat.forms import Form, Message
    from sftkit_commands.chat.settings import Sampling


@dataclass(frozen=True)
class Answer:
    """What a model has answered.

    Attributes:
        text: the answer, without special tokens.
        tokens: the number of its tokens, with the one that ends the turn.
        prompt_tokens: the number of tokens that the model was given.
        stopped: why it ended: ``end`` (the model ended its turn), ``length`` (``max_new_tokens``), ``context`` (the
            context window is full) or ``interrupted``.
        seconds: from the question to the end of the answer.
    """

    text: str
    tokens: int
    prompt_tokens: int
    stopped: str
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for ``--json``."""
        return {
            "answer": self.text,
            "prompt_tokens": self.prompt_tokens,
            "answer_tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "stopped": self.stopped,
        }


@dataclass
class Speaker:
    """A model with the form of its prompts.

    Attributes:
        name: for people.
        trained: the model and its tokenizer.
        form: makes token ids of messages.
        around: the context in which the model runs, such as one without its adapter.
    """

    name: str
    trained: TrainedModel
    form: Form
    around: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    _cache: Any = field(default=None, repr=False)
    _cached: list[int] = field(default_factory=list, repr=False)

    @property
    def room(self) -> int | None:
        """The number of tokens of the context window; None if the model has no limit."""
        return position_limit(self.trained.model.config)

    def answer(
        self,
        messages: list[Message],
        sampling: Sampling,
        emit: Callable[[str], None],
        stop: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """Answer the last message.

        Args:
            messages: the conversation.
            sampling: how tokens are chosen.
            emit: gets each piece of text as soon as its characters are complete.
            stop: asked after each token whether the answer is interrupted.

        Raises:
            ConfigError: if the conversation leaves no room for an answer, or the form cannot write it.
        """
        since = time.monotonic()
        ids = self.form.ids(messages)
        if not ids:
            raise ConfigError(Problem("the prompt is empty", "prompt", "write something"))
        new = sampling.max_new_tokens
        if self.room is not None:
            if len(ids) >= self.room:
                raise ConfigError(_full(len(ids), self.room, self.form.remembers))
            new = min(new, self.room - len(ids))
        ends = end_token_ids(self.trained.model, self.trained.tokenizer)
        streamer = _Pieces(self.trained.tokenizer, ends, emit)
        with self.around(), torch.inference_mode():
            self._generate(ids, _settings(sampling, new, ends, self.trained.tokenizer), streamer, stop)
        made = streamer.ids
        ended = bool(made) and made[-1] in ends
        text = streamer.finish(made[:-1] if ended else made)
        full = new < sampling.max_new_tokens and len(made) >= new
        why = "end" if ended else "interrupted" if len(made) < new else "context" if full else "length"
        return Answer(text, len(made), len(ids), why, time.monotonic() - since)

    def _generate(self, ids: list[int], settings: Any, streamer: _Pieces, stop: Callable[[], bool]) -> None:
        model = self.trained.model
        cache = self._fitting_cache(ids)
        more = {} if cache is None else {"past_key_values": cache}
        given = torch.tensor([ids], device=model.get_input_embeddings().weight.device)
        self._cache, self._cached = None, []  # of no use if what follows is interrupted
        with contextlib.suppress(KeyboardInterrupt):
            model.generate(
                input_ids=given,
                attention_mask=torch.ones_like(given),
                generation_config=settings,
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([_Interrupted(stop)]),
                **more,
            )
            if cache is not None:
                self._cache, self._cached = cache, [*ids, *streamer.ids][: cache.get_seq_length()]

    def _fitting_cache(self, ids: list[int]) -> Any:
        """The cache, cut to the tokens that these ids begin with; None for models that need another kind of cache."""
        cache = self._cache
        if cache is None:
            cache = DynamicCache(config=self.trained.model.config.get_text_config(decoder=True))
            plain = bool(cache.layers) and all(type(layer) is DynamicLayer for layer in cache.layers)
            return cache if plain and not _has_prompt(self.trained.model) else None
        pairs = zip(self._cached, ids[:-1], strict=False)  # one token at least is read, for the scores of the next
        shared = next((at for at, (old, new) in enumerate(pairs) if old != new), min(len(self._cached), len(ids) - 1))
        if shared < len(self._cached):
            cache.crop(shared - len(self._cached))
        return cache


class _Pieces(BaseStreamer):
    """Gives away the text of tokens as soon as its characters are complete."""

    def __init__(self, tokenizer: Any, ends: list[int], emit: Callable[[str], None]) -> None:
        self.tokenizer, self.ends, self.emit = tokenizer, ends, emit
        self.ids: list[int] = []
        self.given = ""
        self._stream, self._prompt = DecodeStream(skip_special_tokens=True), True

    def put(self, value: Any) -> None:
        """Take the prompt, and then token after token."""
        if self._prompt:
            self._prompt = False
            return
        for number in value.flatten().tolist():
            self.ids.append(number)
            if number not in self.ends and (text := self._stream.step(self.tokenizer.backend_tokenizer, number)):
                self._give(text)

    def end(self) -> None:
        """Nothing: `finish` gives the rest away."""

    def finish(self, ids: list[int]) -> str:
        """The whole text; what was not complete is given away."""
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        if text.startswith(self.given) and text != self.given:
            self._give(text[len(self.given) :])
        return text

    def _give(self, text: str) -> None:
        self.given += text
        self.emit(text)


class _Interrupted(StoppingCriteria):
    """Ends the answer after the token during which the user interrupted it."""

    def __init__(self, stop: Callable[[], bool]) -> None:
        self.stop = stop

    def __call__(self, input_ids: Any, scores: Any, **more: Any) -> Any:
        """Whether each row is done."""
        return torch.full((input_ids.shape[0],), self.stop(), dtype=torch.bool, device=input_ids.device)


def _settings(sampling: Sampling, new: int, ends: list[int], tokenizer: Any) -> GenerationConfig:
    chosen: dict[str, Any] = {"do_sample": False}
    if sampling.temperature:
        chosen = {"do_sample": True, "temperature": sampling.temperature}
        chosen |= {"top_p": sampling.top_p, "top_k": sampling.top_k}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(ends), 0)
    return GenerationConfig(
        **chosen,
        num_beams=1,
        use_cache=True,
        max_new_tokens=new,
        repetition_penalty=sampling.repetition_penalty,
        pad_token_id=pad,
        eos_token_id=ends or None,
    )


def _full(tokens: int, room: int, remembers: bool) -> Problem:
    what = f"the conversation has {tokens:,} tokens, and the model's context window is {room:,}: nothing was cut off"
    fix = "remove turns with /undo, or start a new conversation with /reset" if remembers else "write a shorter prompt"
    return Problem(what, "context window", fix)


def _has_prompt(model: Any) -> bool:
    """Whether an adapter puts a learned prompt in front, which is part of the cache."""
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


def describe(model: Any) -> Iterator[str]:
    """Facts about a model, for people."""
    base = base_model(model)
    yield base.config.model_type
    if has_adapter(model):
        yield f"adapter {', '.join({str(config.peft_type.value).lower() for config in model.peft_config.values()})}"
    size = base.num_parameters()
    unit, sign = (1e9, "B") if size >= 1e9 else (1e6, "M") if size >= 1e6 else (1e3, "K")
    yield f"{size / unit:.1f}{sign} parameters"
    weight = model.get_input_embeddings().weight
    yield f"{str(weight.dtype).removeprefix('torch.')} on {weight.device}"
