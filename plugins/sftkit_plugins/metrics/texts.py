"""Metrics that compare the text of each completion with its reference."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from sftkit.api import DataError, Problem

if TYPE_CHECKING:
    from sftkit.api import Completion


@dataclasses.dataclass(frozen=True)
class ExactMatch:
    """The share of completions that are their reference, from 0 to 1."""

    names: ClassVar = ("exact_match",)

    def __call__(self, completions: Sequence[Completion]) -> float:
        return sum(completion.exact for completion in completions) / len(completions)


@dataclasses.dataclass(frozen=True)
class Rouge:
    """The mean F-measures of ROUGE-1, ROUGE-2 and ROUGE-L, from 0 to 1.

    Args:
        stemmer: whether the stems of words are compared.
    """

    stemmer: bool
    names: ClassVar = ("rouge1", "rouge2", "rougeL")

    def __call__(self, completions: Sequence[Completion]) -> dict[str, float]:
        """The mean over the completions.

        Raises:
            DataError: if no reference has a word that ROUGE counts: it reads only the letters a to z and digits.
        """
        from rouge_score.rouge_scorer import RougeScorer
        from rouge_score.tokenizers import DefaultTokenizer

        words = DefaultTokenizer(self.stemmer)
        if unread := sum(not words.tokenize(completion.reference) for completion in completions):
            if unread == len(completions):
                what = "no reference has a word that rouge counts, which are of the letters a to z and of digits"
                raise DataError(Problem(what, "evaluate.metrics", "use bleu, with plugins.metrics.bleu_tokenizer"))
            text = "rouge: %d of %d references have no word of the letters a to z or of digits, and count as 0"
            logging.getLogger("sftkit").warning(text, unread, len(completions))
        scorer = RougeScorer(list(self.names), use_stemmer=self.stemmer)
        scores = [scorer.score(completion.reference, completion.text) for completion in completions]
        return {name: sum(score[name].fmeasure for score in scores) / len(scores) for name in self.names}


@dataclasses.dataclass(frozen=True)
class Bleu:
    """BLEU of all completions as a corpus, from 0 to 100.

    Args:
        tokenizer: the name of a tokenizer of sacrebleu.
    """

    tokenizer: str
    names: ClassVar = ("bleu",)

    def __call__(self, completions: Sequence[Completion]) -> float:
        from sacrebleu.metrics import BLEU

        texts, references = zip(*((each.text, each.reference) for each in completions), strict=True)
        return float(BLEU(tokenize=self.tokenizer, force=True).corpus_score(texts, [references]).score)
