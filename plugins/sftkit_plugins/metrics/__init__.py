"""The metrics of completions that sftkit has, and the user's own functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from sftkit.api import Field, Plugin, Problem, dataclass, hookimpl, import_user_module, requirement_problem

if TYPE_CHECKING:
    from sftkit.api import RunConfig

#: What a metric needs besides sftkit.
PACKAGES = {"rouge": "rouge-score>=0.1.2", "bleu": "sacrebleu>=2.4"}
WHERE, KEY = "evaluate.metrics", ("evaluate", "metrics")


@dataclass(frozen=True, kw_only=True)
class Metrics(Plugin):
    """Offers exact_match, rouge, bleu and functions `module:function` as metrics of completions.

    Sources: Lin, 2004, ROUGE (F-measures by the package rouge-score); Papineni et al., 2002, BLEU, as Post, 2018
    (arXiv 1804.08771) makes it comparable (corpus BLEU by the package sacrebleu).
    """

    rouge_stemmer: Annotated[bool, Field(description="ROUGE: compare the stems of English words")] = False
    bleu_tokenizer: Annotated[
        Literal["13a", "intl", "zh", "char"],
        Field(description="BLEU: how sacrebleu splits texts; zh for Chinese, char for languages without spaces"),
    ] = "13a"

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """Packages that are not installed, and functions that cannot be imported."""
        for name in config.evaluate.metrics:
            if name in PACKAGES and (problem := requirement_problem(PACKAGES[name], WHERE)):
                yield Problem(f"the metric {name} {problem.what}", WHERE, problem.fix, KEY)
            elif ":" in name and isinstance(found := user_function(name), Problem):
                yield found

    @hookimpl
    def metrics(self, config: RunConfig) -> Mapping[str, Any]:
        """The metrics by name; of the user's functions those that the configuration names."""
        from sftkit_plugins.metrics.texts import Bleu, ExactMatch, Rouge

        own = {"exact_match": ExactMatch(), "rouge": Rouge(self.rouge_stemmer), "bleu": Bleu(self.bleu_tokenizer)}
        return own | {name: user_function(name) for name in config.evaluate.metrics if ":" in name}


def user_function(name: str) -> Any:
    """The function ``module:function``, or the problem with it."""
    module, _, path = name.partition(":")
    fix = "name a function of completions as module:function; the module is installed, or in the working directory"
    try:
        found: Any = import_user_module(module)
    except Exception as error:  # whatever the module raises
        return Problem(f"`import {module}` fails: {type(error).__name__}: {error}", WHERE, fix, KEY)
    for part in path.split("."):
        if not hasattr(found, part):
            return Problem(f"module {module} has no function {path!r}", WHERE, fix, KEY)
        found = getattr(found, part)
    return found if callable(found) else Problem(f"{name} is no function", WHERE, fix, KEY)
