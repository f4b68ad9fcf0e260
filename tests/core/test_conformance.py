# ruff: noqa: N803 (suffixes are shapes)
"""The checks of a plugin find what only a run of its hooks shows."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import torch

from sftkit.api import (
    Field,
    Formatter,
    HeadLoss,
    Packer,
    Plugin,
    Problem,
    Span,
    TokenLosses,
    dataclass,
    examples_table,
    hookimpl,
    plugin_from,
)
from sftkit.plugin.calls import hook_names
from sftkit.testing import check_plugin, examine_plugin, sample_rows
from sftkit.testing.conformance import all_checks
from sftkit_plugins.pad import PadCollator


def norms(model: Any) -> list[Any]:
    return [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]


def patched(model: Any, change: Any) -> None:
    for norm in norms(model):
        norm.forward = functools.partial(change, norm.forward)


@dataclass(frozen=True, kw_only=True)
class ScaledWeights(Plugin):
    """A kernel that scales weights."""

    @hookimpl
    def patch_kernels(self, model):
        patched(model, lambda forward, states: forward(states))
        for norm in norms(model):
            norm.weight.data.mul_(1.5)


@dataclass(frozen=True, kw_only=True)
class WrongLogits(Plugin):
    """A kernel that computes something else."""

    @hookimpl
    def patch_kernels(self, model):
        patched(model, lambda forward, states: forward(states) * 1.01)


@dataclass(frozen=True, kw_only=True)
class WrongGradient(Plugin):
    """A kernel whose backward is half of what it should be."""

    @hookimpl
    def patch_kernels(self, model):
        def half(forward, states):
            made = forward(states)
            return 0.5 * made + 0.5 * made.detach()

        patched(model, half)


@dataclass(frozen=True, kw_only=True)
class PatchedTwice(Plugin):
    """A kernel that is right once."""

    @hookimpl
    def patch_kernels(self, model):
        model.patches = getattr(model, "patches", 0) + 1
        patched(model, lambda forward, states, times=model.patches: forward(states) * times)


def noise_of(model: Any, while_evaluating: bool = False) -> Any:
    def add(module, inputs, output):
        return output + torch.randn_like(output) if model.training or while_evaluating else output

    return model.get_input_embeddings().register_forward_hook(add)


@dataclass(frozen=True, kw_only=True)
class NoiseThatStays(Plugin):
    """Leaves its hook on the model."""

    @hookimpl
    @contextmanager
    def inject_noise(self, model):
        noise_of(model)
        yield


@dataclass(frozen=True, kw_only=True)
class NoiseAfterException(Plugin):
    """Leaves its hook on the model if training fails."""

    @hookimpl
    @contextmanager
    def inject_noise(self, model):
        handle = noise_of(model)
        yield
        handle.remove()


@dataclass(frozen=True, kw_only=True)
class NoiseInEvaluation(Plugin):
    """Adds its noise always."""

    @hookimpl
    @contextmanager
    def inject_noise(self, model):
        handle = noise_of(model, while_evaluating=True)
        try:
            yield
        finally:
            handle.remove()


@dataclass(frozen=True, kw_only=True)
class NoNoise(Plugin):
    """Adds none."""

    @hookimpl
    def inject_noise(self, model):
        return nullcontext()


@dataclass(frozen=True, kw_only=True)
class Swallows(Plugin):
    """Hides an error of the training."""

    @hookimpl
    @contextmanager
    def training_context(self, model):
        with suppress(Exception):
            yield


@dataclass(frozen=True, kw_only=True)
class OtherAttention(Plugin):
    """Leaves another setting in the model's configuration."""

    @hookimpl
    @contextmanager
    def training_context(self, model):
        model.config.pad_token_id = 7
        yield


@dataclass(frozen=True, kw_only=True)
class Frugal(Plugin):
    """Keeps fewer activations, and loses a part of the gradient."""

    @hookimpl
    @contextmanager
    def reduce_activations(self, model):
        handle = model.get_input_embeddings().register_forward_hook(lambda *call: call[2].detach())
        try:
            yield
        finally:
            handle.remove()


@dataclasses.dataclass(frozen=True)
class Numbering(Formatter):
    counter: Any = dataclasses.field(default_factory=lambda: [0])

    def __call__(self, rows):
        def next_number():
            self.counter[0] += 1
            return self.counter[0]

        return [[Span(f"{next_number() % 3}. ", False), Span(text, True)] for text in rows["text"]]


@dataclasses.dataclass(frozen=True)
class Neighbours(Formatter):
    def __call__(self, rows):
        return [[Span(rows["text"][0], False), Span(text, True)] for text in rows["text"]]


@dataclasses.dataclass(frozen=True)
class Unpicklable(Formatter):
    strip: Any = dataclasses.field(default_factory=lambda: lambda text: text.strip())

    def __call__(self, rows):
        return [[Span(self.strip(text), True)] for text in rows["text"]]


@dataclasses.dataclass(frozen=True)
class Loses(Formatter):
    def __call__(self, rows):
        return [[Span(text, True)] for text in rows["text"] if "1" in text]


@dataclasses.dataclass(frozen=True)
class Untrained(Formatter):
    def __call__(self, rows):
        return [[Span(text, False)] for text in rows["text"]]


@dataclasses.dataclass(frozen=True)
class Hides(Formatter):
    @property
    def columns_used(self):
        return frozenset({"prompt"})

    def __call__(self, rows):
        return [
            [Span(prompt, False), Span(end, True)]
            for prompt, end in zip(rows["prompt"], rows["completion"], strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class Reads(Plugin):
    """Reads rows with one of these formatters."""

    formatter: Annotated[type, Field(description="the class")]
    column: Annotated[str, Field(description="a column")] = "text"

    @hookimpl
    def make_formatter(self, columns):
        return self.formatter() if self.column in columns else None


@dataclasses.dataclass(frozen=True)
class Careless(Packer):
    """Packs everything into rows, and forgets something."""

    forgets: str
    max_length: int

    def __call__(self, examples):
        import pyarrow as pa  # noqa: F401 (as tables are)

        kept = examples.take(np.arange(len(examples) - (self.forgets == "a document")))
        starts, used = [0], 0
        for number, length in enumerate(kept.lengths_N.tolist()):
            if used + length > self.max_length * (2 if self.forgets == "the limit" else 1):
                starts.append(number)
                used = 0
            used += length
        places = np.concatenate([np.arange(length) for length in kept.lengths_N])
        if self.forgets == "positions":
            rows = np.diff([*kept.offsets_N1[starts], len(kept.ids_S)])
            places = np.concatenate([np.arange(length) for length in rows])
        weights = None if self.forgets == "weights" else kept.weights_S
        columns = {"input_ids": kept.ids_S, "labels": kept.labels_S, "position_ids": places}
        yield examples_table(kept.offsets_N1[[*starts, len(kept)]], weights, **columns)


@dataclass(frozen=True, kw_only=True)
class Packs(Plugin):
    """Packs rows carelessly."""

    forgets: Annotated[str, Field(description="what it forgets")]

    @hookimpl
    def make_packer(self, config):
        return Careless(self.forgets, config.data.max_length)


@dataclasses.dataclass(frozen=True)
class WrongBatches:
    wrong: str

    def __call__(self, examples):
        if self.wrong == "its input":
            examples[0]["labels"][:] = -100
        if self.wrong == "the order":
            examples = examples[::-1]
        batch = PadCollator(2)(examples)
        if self.wrong == "shifted labels":
            batch["labels"] = batch["labels"].roll(-1, 1)
        if self.wrong == "every token":
            batch["labels"] = batch["input_ids"].clone()
        if self.wrong == "int32":
            batch["labels"] = batch["labels"].int()
        if self.wrong == "no positions" and "position_ids" in batch:
            del batch["position_ids"]
        if self.wrong == "no weights":
            batch.pop("loss_weights", None)
        if self.wrong == "no mask" and "attention_mask" in batch:
            batch["attention_mask"][:] = 1
        return batch


@dataclass(frozen=True, kw_only=True)
class Collates(Plugin):
    """Makes wrong batches."""

    wrong: Annotated[str, Field(description="what is wrong with them")]

    @hookimpl
    def make_collator(self):
        return WrongBatches(self.wrong)


class OfTheBatch(HeadLoss):
    def tokens(self, logits_KV, targets_K, gradient):
        made = super().tokens(logits_KV, targets_K, gradient)
        share = 1 / len(targets_K)
        return TokenLosses(made.losses_K * share, made.gradient_KV * share if gradient else None, {})


@dataclass(frozen=True, kw_only=True)
class MeanLoss(Plugin):
    """Divides losses by the tokens that it sees at a time."""

    @hookimpl
    def make_loss(self):
        return OfTheBatch()


class Uphill(HeadLoss):
    def tokens(self, logits_KV, targets_K, gradient):
        made = super().tokens(logits_KV, targets_K, gradient)
        return made._replace(gradient_KV=-made.gradient_KV if gradient else None)


class Mean(HeadLoss):
    def tokens(self, logits_KV, targets_K, gradient):
        made = super().tokens(logits_KV, targets_K, gradient)
        return made._replace(losses_K=made.losses_K.mean())


class Unrelated(HeadLoss):
    """A gradient that is neither the derivative of the loss, nor that of the negative log-likelihood."""

    def tokens(self, logits_KV, targets_K, gradient):
        made = super().tokens(logits_KV.clone(), targets_K, gradient)
        return made._replace(gradient_KV=made.gradient_KV + 5 * logits_KV.softmax(1) if gradient else None)


@dataclass(frozen=True, kw_only=True)
class Minimises(Plugin):
    """Makes a loss."""

    loss: Annotated[Any, Field(description="the loss")]

    @hookimpl
    def make_loss(self):
        return self.loss


@dataclass(frozen=True, kw_only=True)
class OneDType(Plugin):
    """Loads every model in the dtype of its checkpoint."""

    @hookimpl
    def load_model(self, config):
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(config.model.name)


@dataclass(frozen=True, kw_only=True)
class Draws(Plugin):
    """Trains other tokens in each call."""

    @hookimpl(wrapper=True)
    def make_collator(self):
        return Drawing((yield))


@dataclasses.dataclass(frozen=True)
class Drawing:
    inner: Any

    def __call__(self, examples):
        batch = self.inner(examples)
        return batch | {"labels": batch["labels"].masked_fill(torch.rand(batch["labels"].shape) < 0.5, -100)}


@dataclass(frozen=True, kw_only=True)
class Unused(Plugin):
    """Trains a weight that the forward does not use."""

    @hookimpl
    def adapt_model(self, model):
        model.extra = torch.nn.Linear(4, 4)
        return model


@dataclass(frozen=True, kw_only=True)
class TextMetric(Plugin):
    """Returns a text as a metric."""

    @hookimpl
    def metrics(self):
        return {"best": lambda completions: completions[0].text}


@dataclass(frozen=True, kw_only=True)
class NoFix(Plugin):
    """Reports a problem without a fix."""

    @hookimpl
    def check_run(self, config):
        if config.data.eval is None:
            yield Problem("there is no evaluation set", "data.eval")


CALLBACKS: list[Any] = []


@dataclass(frozen=True, kw_only=True)
class SharedCallback(Plugin):
    """Returns the same callback to each run."""

    @hookimpl
    def trainer_callbacks(self):
        from transformers import TrainerCallback

        CALLBACKS[:] = CALLBACKS or [TrainerCallback()]
        return CALLBACKS


@dataclass(frozen=True, kw_only=True)
class Stray(Plugin):
    """Exports into the working directory."""

    @hookimpl
    def export_model(self, model, directory):
        Path("copy.txt").write_text("of the model")


NUMBERS = itertools.count()


@dataclass(frozen=True, kw_only=True)
class EndlessTokens(Plugin):
    """Adds a new token with each call."""

    @hookimpl
    def add_tokens(self, tokenizer):
        tokenizer.add_tokens([f"<|{next(NUMBERS)}|>"])


@dataclass(frozen=True, kw_only=True)
class Undocumented(Plugin):
    """Has an option that nobody explains."""

    strength: float = 1.0
    other: Annotated[float, Field(description="explained")] = 1.0

    @hookimpl
    def inject_noise(self, model):
        return nullcontext()


class Sign(torch.optim.Optimizer):
    def __init__(self, weights, how):
        super().__init__(weights, {"lr": 0.1})
        self.how = how

    @torch.no_grad()
    def step(self, closure=None):
        for weight in self.param_groups[0]["params"]:
            if weight.grad is None or (self.how == "matrices" and weight.dim() < 2):
                continue
            if self.how == "values" and weight.grad.norm() == 0:
                continue
            weight.sub_(0.1 * weight.grad.sign())


@dataclass(frozen=True, kw_only=True)
class Optimizes(Plugin):
    """Has an optimizer with a mistake."""

    how: Annotated[str, Field(description="the mistake")]

    @hookimpl
    def make_optimizer(self, model):
        return Sign([weight for weight in model.parameters() if weight.requires_grad], self.how)


@dataclass(frozen=True, kw_only=True)
class PerCharacter(Plugin):
    """Has a metric that divides by the length of what the model wrote."""

    @hookimpl
    def metrics(self):
        return {"per_character": lambda completions: 1 / sum(len(each.text) for each in completions)}


@dataclass(frozen=True, kw_only=True)
class CalledMetric(Plugin):
    """Returns a value in place of a function."""

    @hookimpl
    def metrics(self):
        return {"best": 0.5}


@dataclass(frozen=True, kw_only=True)
class MisspeltEvent(Plugin):
    """Has a callback whose event does not exist."""

    @hookimpl
    def trainer_callbacks(self):
        from transformers import TrainerCallback

        class Writes(TrainerCallback):
            def on_step_ends(self, args, state, control, **_):
                pass

        return [Writes()]


@dataclass(frozen=True, kw_only=True)
class Reports(Plugin):
    """Reports something else than problems."""

    found: Annotated[Any, Field(description="what it reports")]

    @hookimpl
    def check_run(self):
        if self.found == "raises":
            raise ValueError("rows are too long")
        return self.found


BROKEN = [
    (Optimizes(how="matrices"), "make_optimizer", "(5 in all) got a gradient, and two steps leave them as they are"),
    (Optimizes(how="values"), "make_optimizer", "a step of weights without values fails"),
    (PerCharacter(), "metrics", "the metric per_character fails if all completions are empty: ZeroDivisionError"),
    (CalledMetric(), "metrics", "the metrics are no functions: best: 0.5"),
    (MisspeltEvent(), "trainer_callbacks", "Writes.on_step_ends is never called"),
    (Reports(found=["too long"]), "check_run", "it reports 'too long', which is no Problem"),
    (Reports(found="raises"), "check_run", "ValueError: rows are too long"),
    (ScaledWeights(), "patch_kernels", "the values of model.layers.0.input_layernorm.weight changed"),
    pytest.param(WrongLogits(), "patch_kernels", "the logits differ by", marks=pytest.mark.slow),
    (WrongGradient(), "patch_kernels", "the gradients of"),
    (PatchedTwice(), "patch_kernels", "when the model is patched twice"),
    (NoiseThatStays(), "inject_noise", "the hooks (_forward_hooks) of model.embed_tokens changed"),
    (NoiseAfterException(), "inject_noise", "the hooks (_forward_hooks) of model.embed_tokens changed"),
    (NoiseInEvaluation(), "inject_noise", "the logits in evaluation mode are others with it"),
    (NoNoise(), "inject_noise", "the logits in training mode are the same with and without it"),
    (Swallows(), "training_context", "it swallows an exception of the training"),
    (OtherAttention(), "training_context", "config.pad_token_id was 2 and is 7"),
    (Frugal(), "reduce_activations", "model.embed_tokens.weight has no gradient inside the context"),
    (Reads(formatter=Numbering), "make_formatter", "the second call makes other documents of the same rows"),
    (Reads(formatter=Neighbours), "make_formatter", "row 8 becomes something else when it is formatted alone"),
    (Reads(formatter=Unpicklable), "make_formatter", "the formatter cannot be pickled"),
    (Reads(formatter=Loses), "make_formatter", "8 rows become"),
    pytest.param(Reads(formatter=Untrained), "make_formatter", "no span is trained", marks=pytest.mark.slow),
    (Reads(formatter=Hides, column="completion"), "make_formatter", "it reads the column 'completion'"),
    (Packs(forgets="a document"), "make_packer", "tokens are lost"),
    pytest.param(Packs(forgets="the limit"), "make_packer", "tokens, with max_length 128", marks=pytest.mark.slow),
    (Packs(forgets="positions"), "make_packer", "without positions that restart at 0"),
    pytest.param(Packs(forgets="weights"), "make_packer", "its tables have no loss_weights", marks=pytest.mark.slow),
    (Collates(wrong="its input"), "make_collator", "it changes labels of row 1 of its input"),
    pytest.param(
        Collates(wrong="the order"),
        "make_collator",
        "does not contain the tokens of row 2 in its place",
        marks=pytest.mark.slow,
    ),
    (Collates(wrong="shifted labels"), "make_collator", "labels of row 1 are others than in the row"),
    pytest.param(
        Collates(wrong="every token"),
        "make_collator",
        "labels of row 1 are others than in the row",
        marks=pytest.mark.slow,
    ),
    pytest.param(Collates(wrong="int32"), "make_collator", "labels is torch.int32 [4, 9]", marks=pytest.mark.slow),
    pytest.param(
        Collates(wrong="no positions"),
        "make_collator",
        "the rows have position_ids, and the batch has none",
        marks=pytest.mark.slow,
    ),
    (Collates(wrong="no weights"), "make_collator", "the batch has none"),
    pytest.param(Collates(wrong="no mask"), "make_collator", "attention_mask shows padding", marks=pytest.mark.slow),
    (MeanLoss(), "make_loss", "when the tokens come in two parts"),
    (Minimises(loss=Uphill()), "make_loss", "its sign is wrong"),
    (Minimises(loss=Mean()), "make_loss", "its losses have the shape () for 4 tokens"),
    (OneDType(), "load_model", "the weights are torch.float32, and model.dtype is bfloat16"),
    (Draws(), "make_collator", "a second call makes another batch of the same rows"),
    (Unused(), "adapt_model", "trained weights get no gradient, such as ['extra.weight']"),
    (TextMetric(), "metrics", "the metric best returns 'It is 2.'"),
    (NoFix(), "check_run", "the problem 'there is no evaluation set' has no fix"),
    (SharedCallback(), "trainer_callbacks", "two runs get the same callback object"),
    (Stray(), "export_model", "it writes elsewhere/copy.txt outside the run directory"),
    (EndlessTokens(), "add_tokens", "it adds 1 more tokens"),
    (Undocumented(), "plugin", "no description of the option strength"),
]


@pytest.mark.parametrize(("plugin", "subject", "what"), BROKEN)
def test_a_broken_plugin_fails_with_hook_and_fix(plugin, subject, what):
    report = examine_plugin(plugin, without=("import", "run"))
    found = [result for result in report.failed if what in result.what]
    assert found, str(report)
    assert {result.subject for result in found} == {subject}
    assert all(result.fix for result in report.failed)


def test_an_error_lists_each_failed_check_with_hook_and_fix():
    with pytest.raises(AssertionError) as caught:
        check_plugin(Undocumented(), without=("import", "run"))
    lines = str(caught.value).splitlines()
    assert lines[1].startswith(
        "failed: plugin: Each option has a description: no description of the option strength -> "
    )
    assert lines[2].startswith("failed: inject_noise: Noise changes the forward of a model in training mode: ")


def test_every_hook_has_a_check():
    about = {hook for each in all_checks() for hook in each.hooks}
    assert {*hook_names()} <= about


def test_a_heavy_import_fails(tmp_path, monkeypatch):
    code = (
        "import numpy\nfrom sftkit.api import Plugin, dataclass, hookimpl\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Heavy(Plugin):\n    '''Imports numpy.'''\n\n"
        "    @hookimpl\n    def model_options(self):\n        return {}\n"
    )
    (tmp_path / "heavy_plugin.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    report = examine_plugin(plugin_from("heavy_plugin:Heavy"), without=("run", "model_options"))
    assert [result.what for result in report.failed] == ["`import heavy_plugin` loads numpy"]


@dataclass(frozen=True, kw_only=True)
class Elsewhere(Plugin):
    """Needs what is not here."""

    requires = ("no-such-package>=1",)

    @hookimpl
    def patch_kernels(self, model):
        raise AssertionError("it is not called")


def test_a_plugin_without_its_package_is_skipped_with_the_reason():
    report = examine_plugin(Elsewhere(), without=("import",))
    hooks = [result for result in report.results if result.subject in ("patch_kernels", "run")]
    assert {result.status for result in hooks} == {"skipped"}
    assert {result.what for result in hooks} == {
        'needs the package no-such-package, which is not installed (pip install "no-such-package>=1")'
    }


@dataclass(frozen=True, kw_only=True)
class Picky(Plugin):
    """Refuses every run."""

    @hookimpl
    def check_run(self, config):
        yield Problem("not on this Monday", "today", "wait until tomorrow")

    @hookimpl
    def inject_noise(self, model):
        raise AssertionError("it is not called")


def test_hooks_of_a_plugin_that_refuses_the_run_are_skipped_with_its_reason():
    report = examine_plugin(Picky(), without=("import",), quick=True)
    assert not report.failed
    noise = [result for result in report.results if result.subject == "inject_noise"]
    assert {(result.status, result.what) for result in noise} == {
        ("skipped", "not on this Monday (wait until tomorrow)")
    }


def test_rows_of_the_author_are_read():
    rows = [{"letter": row["text"]} for row in sample_rows("text")]
    report = examine_plugin(LetterFormat(), rows=rows, without=("import", "run"))
    assert not report.failed
    assert "skipped" not in {result.status for result in report.results if result.subject == "make_formatter"}


def test_a_format_that_no_row_of_the_kit_has_is_skipped():
    report = examine_plugin(LetterFormat(), without=("import", "run"))
    assert {result.status for result in report.results if result.subject == "make_formatter"} == {"skipped"}


@dataclasses.dataclass(frozen=True)
class Letters(Formatter):
    def __call__(self, rows):
        return [[Span(letter, True)] for letter in rows["letter"]]


@dataclass(frozen=True, kw_only=True)
class LetterFormat(Plugin):
    """Reads the column letter."""

    @hookimpl
    def make_formatter(self, columns):
        return Letters() if "letter" in columns else None


@dataclass(frozen=True, kw_only=True)
class Wrapped(Plugin):
    """Trains a model whose weights are saved under other names."""

    @hookimpl
    def adapt_model(self, model):
        model.model.norm = torch.nn.Sequential(model.model.norm)
        return model


@dataclass(frozen=True, kw_only=True)
class Undeclared(Plugin):
    """Writes a file that it does not declare."""

    @hookimpl
    def trainer_callbacks(self):
        from transformers import TrainerCallback

        class Writes(TrainerCallback):
            def on_train_end(self, args, state, control, **_):
                Path(args.output_dir, "notes.txt").write_text("done")

        return [Writes()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plugin", "what"),
    [
        (Wrapped(), "the saved model lacks weights, or has others"),
        (Undeclared(), "the run directory has notes.txt, which the plugin does not declare"),
    ],
)
def test_a_run_with_a_broken_plugin_fails(plugin, what):
    report = examine_plugin(plugin, without=("import",), quick=True)
    assert any(what in result.what and result.subject == "run" for result in report.failed), str(report)


OTHERS = ("import", "run")


def test_a_weighted_likelihood_may_hold_its_weight_constant():
    report = examine_plugin(plugin_from("loss:type=dft"), without=OTHERS)
    assert not report.failed
    assert "make_loss" not in {result.subject for result in report.skipped}


def test_a_gradient_that_is_no_derivative_is_reported_and_not_passed():
    report = examine_plugin(Minimises(loss=Unrelated()), without=OTHERS)
    assert any("is not the derivative of their losses" in result.what for result in report.skipped), str(report)


def test_a_hook_without_any_check_is_a_warning():
    with pytest.warns(UserWarning, match="nothing of make_formatter was checked: it reads none of the kit's rows"):
        check_plugin(Reads(formatter=Untrained, column="nowhere"), without=OTHERS)


def test_an_exception_is_reported_with_the_line_of_the_plugin_and_one_fix():
    @dataclass(frozen=True, kw_only=True)
    class Reading(Plugin):
        """Reads a file that is not there."""

        @hookimpl
        def load_tokenizer(self):
            return Path("nowhere.json").read_text(encoding="utf-8")

    (failed,) = [each for each in examine_plugin(Reading(), without=OTHERS).failed if each.subject == "load_tokenizer"]
    assert f"({__file__}, line " in failed.what
    assert "->" not in failed.what


def test_rows_of_the_author_are_trained_on_or_held_out():
    rows = [{"text": f"One and one is {number}."} for number in range(4)]
    assert not examine_plugin(Reads(formatter=Plain), rows=rows, quick=True, without=("import",)).failed


@dataclasses.dataclass(frozen=True)
class Plain(Formatter):
    def __call__(self, rows):
        return [[Span(text, True)] for text in rows["text"]]
