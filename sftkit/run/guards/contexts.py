"""The context managers that plugins hold around the training leave the model as it was."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from sftkit.errors import Problem, RunError
from sftkit.plugin.calls import NamedContext
from sftkit.run.guards.surface import Key, Surface, described, differing, surface_of
from sftkit.run.guards.weights import Weights

if TYPE_CHECKING:
    from sftkit.plugin.selected import PluginSet
    from sftkit.training.collate import BatchChoice

logger = logging.getLogger("sftkit")

#: Hooks whose contexts may choose what is trained while they last.
CHOOSING = ("training_context",)
FIX_ENTRY = "change weights, and what is trained, in adapt_model"
FIX_EXIT = "the model is saved before: write other weights in export_model"
FIX_LEFT = "restore the model in a `finally` clause of the context manager"
FIX_CONTEXT = "put @contextmanager below @hookimpl, or return a context manager"


@contextmanager
def plugin_contexts(
    hook: str, found: Iterable[tuple[str, Any]], model: Any, entered: Callable[[Any], None] | None = None
) -> Iterator[dict[str, Any]]:
    """Inside, the plugins' context managers are held, in their order; yields what each yields, by its plugin.

    Args:
        hook: the hook that made them.
        found: ``(plugin name, context manager)`` pairs.
        model: the model, which each of them has to leave as it was.
        entered: called with what a context manager yields, before the next one is entered.

    Raises:
        RunError: if one is no context manager, changes weights when it is entered or left, or leaves hooks, forwards,
            modules or frozen weights. After an error of the training that is a warning, and the error is raised, even
            if a context manager suppresses it.
    """
    watched = _Watched(model)
    with ExitStack() as stack:
        yielded = {}
        for plugin, context in found:
            yielded[plugin] = stack.enter_context(_Guarded(plugin, hook, context, watched))
            if entered is not None:
                entered(yielded[plugin])
        watched.forget()
        yield yielded


def activation_context(context: Any, plugins: PluginSet, model: Any) -> AbstractContextManager[Any]:
    """The context of ``reduce_activations``, held as those of `plugin_contexts`."""
    hook = "reduce_activations"
    name = context.plugin if isinstance(context, NamedContext) else plugins.first_filler(hook)
    return plugin_contexts(hook, [(name, context)], model)


@contextmanager
def training_contexts(hook: Any, model: Any, config: Any, rows: Any, collator: Any) -> Iterator[dict[str, BatchChoice]]:
    """The contexts of ``training_context``, held as those of `plugin_contexts`; yields what they decide about batches.

    Args:
        hook: the hooks of the plugins.
        model: of the hook, as are the other arguments. A context gets the collator that those before it have chosen.
        config: the resolved configuration.
        rows: training rows.
        collator: makes a batch of them.
    """
    from sftkit.training.collate import CurrentCollator

    current = CurrentCollator(collator)
    known = {"config": config, "rows": rows, "collator": None if collator is None else current}
    contexts = hook.training_context(model=model, **known)
    with plugin_contexts("training_context", contexts, model, current.follow) as yielded:
        yield batch_choices(yielded)


def batch_choices(yielded: Mapping[str, Any]) -> dict[str, BatchChoice]:
    """What the contexts of ``training_context`` decided about the batches, by plugin.

    Raises:
        RunError: if two of them choose a collator.
    """
    from sftkit.training.collate import BatchChoice

    found = {plugin: value for plugin, value in yielded.items() if isinstance(value, BatchChoice)}
    choosing = [plugin for plugin, choice in found.items() if choice.collator is not None]
    if len(choosing) > 1:
        what, fix = f"plugins {' and '.join(choosing)} both choose a collator", f"keep one of {', '.join(choosing)}"
        raise RunError(Problem(what, "hook training_context", fix))
    return found


class State(NamedTuple):
    """A model as far as plugins have to leave it as it was."""

    weights: Weights
    surface: Surface


class _Watched:
    """A model whose state is known as long as only its guards run."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._known: State | None = None

    def known(self) -> State:
        """The state since the last look."""
        return self._known or self.look()

    def look(self) -> State:
        """The state now."""
        self._known = State(Weights.of(self._model), surface_of(self._model))
        return self._known

    def forget(self) -> None:
        """From here on, others change the model."""
        self._known = None


class _Guarded(AbstractContextManager[Any]):
    """One plugin's context, with the model compared before and after its own code runs."""

    def __init__(self, plugin: str, hook: str, context: Any, watched: _Watched) -> None:
        self._where, self._hook = f"plugin {plugin}, hook {hook}", hook
        if not isinstance(context, AbstractContextManager):
            what = f"it returns an object of type {type(context).__name__}, which is no context manager"
            raise RunError(Problem(what, self._where, FIX_CONTEXT))
        self._context, self._watched = context, watched
        self._changed: set[Key] = set()
        self._before: Surface = {}

    def __enter__(self) -> Any:
        before = self._watched.known()
        yielded = self._context.__enter__()
        now = self._watched.look()
        self._before, self._changed = before.surface, differing(before.surface, now.surface)
        if changes := self._changes(before.weights, now.weights, chooses=self._hook in CHOOSING):
            self._context.__exit__(None, None, None)
            raise RunError(Problem(f"at its start, it {'; '.join(changes)}", self._where, FIX_ENTRY))
        return yielded

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        before = self._watched.known()
        problem: Problem | None = None
        try:
            if self._context.__exit__(kind, error, trace) and error is not None:
                logger.warning("%s: it suppresses an error of the training, which is raised all the same", self._where)
        finally:
            problem = self._left(before, self._watched.look())
            if problem is not None and error is not None:
                logger.warning("%s", problem)
        if problem is not None and error is None:
            raise RunError(problem)

    def _changes(self, before: Weights, now: Weights, chooses: bool) -> list[str]:
        """What it does to the weights; if it ``chooses`` what is trained, that is not among them."""
        changes = before.changes(now)
        return [each for each in changes if not (chooses and each.startswith(("freezes", "unfreezes")))]

    def _left(self, before: State, now: State) -> Problem | None:
        """What the context has left behind, given the state before its exit."""
        changed = self._changed | differing(before.surface, now.surface)
        wrong = changed & differing(self._before, now.surface)
        if wrong:
            left = "; ".join(described(wrong, now.surface))
            return Problem(f"at its end, it {left}", self._where, FIX_LEFT)
        if changes := self._changes(before.weights, now.weights, chooses=True):
            return Problem(f"at its end, it {'; '.join(changes)}", self._where, FIX_EXIT)
        return None
