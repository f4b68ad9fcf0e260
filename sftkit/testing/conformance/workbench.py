"""What the checks of one plugin share: the plugin beside the defaults, tiny models, batches, and a prepared run."""

from __future__ import annotations

import functools
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.console.output import Output, showing
from sftkit.errors import ConfigError, HookError, Problem, SftkitError
from sftkit.plugin.base import Plugin
from sftkit.plugin.calls import PROJECT, hooks_filled, is_slot, make_manager
from sftkit.plugin.registry import discover, load_class, name_of
from sftkit.plugin.requirements import has_gpu, requirement_problem
from sftkit.testing.conformance.checks import skip
from sftkit.testing.rows import FORMS, sample_rows
from sftkit.testing.tiny import CHATML, tiny_model, tiny_tokenizer
from sftkit.testing.training import tiny_directory

if TYPE_CHECKING:
    from sftkit.config import RunConfig
    from sftkit.plugin.selected import PluginSet
    from sftkit.run.pipeline import Pipeline
    from sftkit.run.stages import PreparedRun, Stages

ROWS, HELD_OUT = 8, 4
MAX_LENGTH = 128
ARCHITECTURES = ("llama", "qwen3", "gemma2", "gpt2")


class Workbench:
    """A plugin under test, and what its checks share. What takes time is made once, and only if a check needs it.

    Attributes:
        plugin: the plugin.
        name: its installed name, or ``module:Class``.
        beside: plugins that are selected with it.
        rows: rows of the author, or None for the kit's own.
        chosen_model: directory of the author's model, or None for the kit's own.
        directory: for everything that the checks write.
        refusals: why the plugin has refused the kit's model in earlier checks.
    """

    def __init__(
        self,
        plugin: Plugin,
        directory: Path,
        rows: Sequence[Mapping[str, Any]] | None = None,
        beside: Sequence[str | Plugin] = (),
        model: str | Path | None = None,
    ) -> None:
        self.plugin, self.directory, self.beside = plugin, directory, tuple(beside)
        self.refusals: list[str] = []
        self.rows = None if rows is None else [dict(row) for row in rows]
        self.name = name_of(type(plugin), discover())
        self.filled = hooks_filled(type(plugin))
        self.chosen_model = None if model is None else Path(model)

    @functools.cached_property
    def missing(self) -> str:
        """What the plugin needs and this machine lacks; empty if nothing."""
        cls = type(self.plugin)
        found = [problem for item in cls.requires if (problem := requirement_problem(item, ""))]
        if found:
            return "; ".join(f"{problem.what} ({problem.fix})" for problem in found)
        return "it needs a GPU, and none is visible here" if cls.needs_gpu and not has_gpu() else ""

    @functools.cached_property
    def refused(self) -> list[Problem]:
        """The problems of a run with this plugin, which its hooks then need not work in; empty if there are none."""
        try:
            self.stages  # noqa: B018 (it is kept)
        except ConfigError as error:
            return list(error.problems)
        except HookError as error:
            return [Problem(str(error))]
        return []

    def fault(self, hook: str) -> Problem | None:
        """What is wrong with what a hook returned, if a run refuses the plugin for it."""
        where = f"plugin {self.name}, hook {hook}"
        return None if self.missing else next((each for each in self.refused if each.where == where), None)

    @property
    def obstacle(self) -> str:
        """Why the plugin's hooks cannot be called here; empty if they can."""
        if self.missing:
            return self.missing
        return "; ".join(f"{each.what} ({each.fix})" if each.fix else each.what for each in self.refused)

    def wraps(self, hook: str) -> bool:
        """Whether the plugin wraps a hook, and does not fill it."""
        return _wraps(type(self.plugin), hook)

    def own(self, hook: str, **arguments: Any) -> Any:
        """What the plugin returns from a hook; of a wrapper, what it makes of the other plugins' result."""
        if self.wraps(hook):
            found = getattr(self.plugins.hook, hook)(**arguments)
            return found if is_slot(hook) else [value for _, value in found]
        manager, _ = make_manager([(self.name, self.plugin)])
        found = getattr(manager.hook, hook)(**arguments)
        return found if is_slot(hook) else found[0].value

    # The run

    @property
    def device(self) -> str:
        """Where models are: the GPU if there is one."""
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    @functools.cached_property
    def model_directory(self) -> Path:
        """The model that runs begin with, with its tokenizer."""
        return self.chosen_model or tiny_directory()

    def pipeline(
        self, output: Path, beside: Sequence[str | Plugin] = (), plugin: bool = True, **train: Any
    ) -> Pipeline:
        """A run of two steps.

        Args:
            output: the run directory.
            beside: further plugins.
            plugin: whether the plugin is one of them.
            train: further fields of the section ``train``.
        """
        from sftkit.run.pipeline import Pipeline

        sections = self.sections(output)
        return Pipeline(
            config={**sections, "train": {**sections["train"], **train}},
            plugins=[*([self.plugin] if plugin else []), *self.beside, *beside],
        )

    def sections(self, output: Path, **train: Any) -> dict[str, Any]:
        """The configuration of a run of two steps, without its plugins; arguments as of `pipeline`."""
        import torch

        steps = {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "report_to": "none"}
        return {
            "model": {"name": str(self.model_directory)},
            "data": {"train": self.data["train"], "eval": self.data["eval"], "max_length": MAX_LENGTH},
            "train": {**steps, "use_cpu": not torch.cuda.is_available(), "output_dir": str(output), **train},
        }

    @functools.cached_property
    def data(self) -> dict[str, str]:
        """Files with the rows of the run: those of the author, else of the first format that the plugin reads."""
        if self.rows is None:
            form = next(iter(self.forms), "messages")
            train, held_out = sample_rows(form, ROWS), sample_rows(form, HELD_OUT, first=1000)
        else:  # a run refuses held-out rows that it trains on
            size = min(HELD_OUT, len(self.rows) // 2)
            train, held_out = self.rows[size:], self.rows[:size] or self.rows
        paths = {}
        for split, rows in {"train": train, "eval": held_out}.items():
            path = self.directory / f"{split}.jsonl"
            path.write_text("".join(json.dumps(row, default=str) + "\n" for row in rows), encoding="utf-8")
            paths[split] = str(path)
        return paths

    @functools.cached_property
    def forms(self) -> dict[str, list[dict[str, Any]]]:
        """The rows that the plugin's formatter reads, by format; empty if the plugin makes none for the kit's."""
        if "make_formatter" not in self.filled or self.missing:
            return {}
        if self.rows is not None:
            return {"rows": self.rows}
        if self.wraps("make_formatter"):
            return {form: sample_rows(form) for form in ("messages", "prompt_completion")}
        return {form: rows for form in FORMS if self.formatter(rows := sample_rows(form)) is not None}

    def formatter(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        """The plugin's formatter for rows, or None if it leaves them to others."""
        from datasets import Dataset

        from sftkit.testing.tiny import tiny_config

        columns = Dataset.from_list([dict(row) for row in rows]).features
        known = {"tokenizer": self.tokenizer(), "processor": None}
        if self.wraps("make_formatter"):
            return self.plugins.hook.make_formatter(columns=columns, config=self.config, **known)
        return self.own("make_formatter", columns=columns, config=tiny_config(plugins=self._options()), **known)

    def _options(self) -> dict[str, dict[str, Any]]:
        from sftkit.plugin.selected import fields_of

        return {self.name: fields_of(self.plugin)}

    @functools.cached_property
    def stages(self) -> Stages:
        """The stages of the run."""
        return self.pipeline(self.directory / "stages").stages()

    @property
    def config(self) -> RunConfig:
        """The run as resolved."""
        return self.stages.config

    @property
    def plugins(self) -> PluginSet:
        """The plugins of the run."""
        return self.stages.plugins

    @functools.cached_property
    def prepared(self) -> PreparedRun:
        """The run with its data."""
        return self.stages.prepare()

    # Models and batches

    def tokenizer(self) -> Any:
        """A fresh tokenizer of the model."""
        if self.chosen_model is None:
            return tiny_tokenizer(chat_template=CHATML)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.chosen_model)

    def model(self, architecture: str = "llama") -> Any:
        """A fresh model in training mode; of the author's architecture, if the author has named a model."""
        if self.chosen_model is None:
            return tiny_model(architecture).to(self.device).train()
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.chosen_model).to(self.device).train()

    def loaded_model(self) -> Any:
        """A fresh model in training mode, loaded as the run loads it, such as with quantized weights."""
        options = self.plugins.model_options(self.config)
        model = self.plugins.hook.load_model(config=self.config, options=options)
        return model.to(self.device).train()

    @property
    def architectures(self) -> tuple[str, ...]:
        """Those of the models to try."""
        return ARCHITECTURES if self.chosen_model is None else (self.model().config.model_type,)

    def batch(self, model: Any) -> dict[str, Any]:
        """Two rows, one of them padded."""
        import torch

        size = model.get_input_embeddings().weight.shape[0]
        ids = torch.randint(3, size, (2, 12), generator=torch.Generator().manual_seed(0))
        mask = torch.ones_like(ids)
        mask[1, 8:] = 0
        batch = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
        return {name: value.to(self.device) for name, value in batch.items()}

    @functools.cached_property
    def adapter(self) -> str:
        """An installed plugin that adds an adapter and works here.

        Raises:
            CheckSkipped: if there is none.
        """
        known = discover()
        for name in known:
            try:
                cls = load_class(name, known)
            except ConfigError:  # a broken plugin is no help
                continue
            if "adapt_model" not in hooks_filled(cls) or cls is type(self.plugin) or cls.needs_gpu:
                continue
            missing = any(requirement_problem(item, "") for item in cls.requires)
            if not missing and not _wraps(cls, "adapt_model") and self._adds_adapter(cls):
                return name
        skip("no plugin that adds an adapter is installed with what it needs")

    def _adds_adapter(self, cls: type[Plugin]) -> bool:
        """Whether a plugin puts an adapter on a model, by its defaults."""
        from sftkit.models.adapt import adapted_model
        from sftkit.models.inspect import has_adapter
        from sftkit.testing.plugins import plugin_set

        try:
            return has_adapter(adapted_model(tiny_model(), self.config, plugin_set(cls()), []))
        except (SftkitError, HookError):  # it needs options
            return False


def _wraps(cls: type[Plugin], hook: str) -> bool:
    return bool(getattr(getattr(cls, hook), f"{PROJECT}_impl")["wrapper"])


@contextmanager
def quietly(cache: Path) -> Iterator[None]:
    """Libraries show no progress and log nothing inside, and prepared data is kept in a cache of its own."""
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled
    from transformers.utils import logging as transformers_logging

    bars = (is_progress_bar_enabled(), transformers_logging.is_progress_bar_enabled())
    level, own_cache = logging.root.manager.disable, os.environ.get("SFTKIT_CACHE")
    disable_progress_bar()
    transformers_logging.disable_progress_bar()
    logging.disable(logging.CRITICAL)
    os.environ["SFTKIT_CACHE"] = str(cache)
    try:
        with warnings.catch_warnings(), showing(Output(quiet=True)):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        os.environ.pop("SFTKIT_CACHE") if own_cache is None else os.environ.update(SFTKIT_CACHE=own_cache)
        for on, enable in zip(bars, (enable_progress_bar, transformers_logging.enable_progress_bar), strict=True):
            if on:
                enable()
