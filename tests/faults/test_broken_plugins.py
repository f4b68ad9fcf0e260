"""Plugins with a mistake: the run stops, and names plugin and hook. The tables of mistakes are in the folder broken."""

from __future__ import annotations

import logging
import re

import pytest
from broken_batches import BATCHES, EXAMPLES, PACKED, WEIGHTED, Batches, only_last
from broken_data import FORMATTERS, PACKERS, TOKENIZERS, TOKENS, Format, Metrics, Pack, Tokenizer, Tokens
from broken_models import (
    ADAPTED,
    CALLBACKS,
    CONTEXTS,
    KERNELS,
    LOADERS,
    LOSSES,
    Activations,
    Adapter,
    Around,
    Callbacks,
    Failing,
    Harmless,
    Kernel,
    Loader,
    Loss,
    Noise,
    Resize,
)
from transformers import DataCollatorForLanguageModeling
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from sftkit import Pipeline
from sftkit.api import Engine, Plugin, dataclass, hookimpl, load_trained
from sftkit.errors import SftkitError
from sftkit.testing import tiny_model, tiny_tokenizer

METRICS = ("returns strings", "returns a list")
ROWS = [{"prompt": f"What is {n}?", "completion": f" {n} is {'one more ' * (n % 4)}"} for n in range(8)]
WEIGHTS = [{**row, "weight": 0.5} for row in ROWS]
HELD_OUT = [{"prompt": "And?" * n, "completion": f" {n}"} for n in range(1, 4)]
#: Those that a quick test tries; the others are slow together.
QUICK = {
    "scales the weights",
    "breaks a tie",
    "leaves a forward hook",
    "scales the weights at its exit",
    "labels one narrower",
    "labels of every real token",
    "drops position_ids",
    "drops loss_weights",
    "returns None for some rows",
    "loses documents",
    "is constant",
    "returns strings",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The directory of a tiny model whose embeddings are tied, with its tokenizer."""
    path = tmp_path_factory.mktemp("broken") / "model"
    tiny_model(tie_word_embeddings=True).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def run(saved, tmp_path, monkeypatch):
    """Runs two steps with some plugins."""
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))

    def run(*plugins, rows=ROWS, model=None, train=None, **options):
        if model is not None:
            options["tokenizer"] = tiny_tokenizer()
        settings = {"max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True, "save_strategy": "no"}
        settings |= {"output_dir": str(tmp_path / "run"), **(train or {})}
        data = {"data": {"max_length": 64}}
        model = str(saved) if model is None else model
        return Pipeline(model, rows, plugins=["no:checks", *plugins], train=settings, config=data, **options).run()

    return run


@pytest.fixture(autouse=True)
def norm(monkeypatch):
    """One of the mistakes changes this class."""
    monkeypatch.setattr(LlamaRMSNorm, "forward", LlamaRMSNorm.forward)


def every(table):
    """A table's mistakes, most of which are slow together."""
    return pytest.mark.parametrize(
        "how", [pytest.param(how, marks=() if how in QUICK else pytest.mark.slow) for how in table]
    )


def refused(run, plugin, hook, *others, **options):
    """The message of a run that is refused because of this plugin and this hook."""
    with pytest.raises(SftkitError) as caught:
        run(*others, plugin, **options)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert re.search(rf"plugin \w+:{type(plugin).__name__}( around \w+)?, hook {hook}\b", message), message
    return message


@every(KERNELS)
def test_29_a_kernel_that_changes_weights_is_refused(run, how):
    model = tiny_model() if how == "leaves the model in eval mode" else None
    if how == "unfreezes the model":
        model = tiny_model()
        model.get_input_embeddings().requires_grad_(False)
    refused(run, Kernel(how=how), "patch_kernels", model=model)


@pytest.mark.slow
def test_29_only_the_kernel_that_changes_weights_is_named(run):
    assert "Harmless" not in refused(run, Kernel(how="scales the weights"), "patch_kernels", Harmless())


AFTER_AN_ERROR = ("leaves a forward hook after an error", "swallows errors")
ORDINARY = [how for how in CONTEXTS if how not in (*AFTER_AN_ERROR, "removes the hooks of others")]


@every(ORDINARY)
def test_30_noise_that_is_not_removed_is_refused(run, how):
    refused(run, Noise(how=how), "inject_noise")


@pytest.mark.slow
@pytest.mark.parametrize("how", [how for how in ORDINARY if how != "freezes a module while training"])
def test_30_a_training_context_that_leaves_something_is_refused(run, how):
    refused(run, Around(how=how), "training_context")


@pytest.mark.slow
@pytest.mark.parametrize("how", [how for how in ORDINARY if how != "is no context manager"])
def test_30_a_context_for_activations_that_leaves_something_is_refused(run, how):
    refused(run, Activations(how=how), "reduce_activations")


@pytest.mark.slow
def test_30_hooks_of_others_stay(run):
    model = tiny_model()
    model.get_input_embeddings().register_forward_hook(lambda *_: None)
    refused(run, Around(how="removes the hooks of others"), "training_context", model=model)


@pytest.mark.slow
def test_30_the_model_is_saved_before_that_is_an_error(run, tmp_path):
    refused(run, Noise(how="leaves another forward"), "inject_noise")
    trained = load_trained(tmp_path / "run").model
    plain = tiny_model(tie_word_embeddings=True)
    assert (trained.lm_head.weight != plain.lm_head.weight).any()


@pytest.mark.slow
@pytest.mark.parametrize("how", AFTER_AN_ERROR)
def test_30_after_an_error_a_context_is_checked_too(run, caplog, how):
    with caplog.at_level(logging.WARNING), pytest.raises(ZeroDivisionError):
        run(Noise(how=how), callbacks=[Failing()])
    assert re.search(r"plugin \w+:Noise, hook inject_noise: .*(leaves a forward hook|suppresses an error)", caplog.text)


@every([*BATCHES, *EXAMPLES, "returns None"])
def test_31_a_collator_that_spoils_batches_is_refused(run, how):
    refused(run, Batches(how=how), "make_collator")


@every(PACKED)
def test_31_a_collator_that_spoils_packed_rows_is_refused(run, how):
    refused(run, Batches(how=how), "make_collator", "packing")


@every(WEIGHTED)
def test_31_a_collator_that_spoils_weights_is_refused(run, how):
    refused(run, Batches(how=how), "make_collator", rows=WEIGHTS)


def test_31_a_batch_that_is_spoiled_later_is_refused(run):
    refused(run, Batches(how="labels on padding, later"), "make_collator", train={"max_steps": 4})


def test_31_the_batches_of_an_evaluation_set_are_checked_before_training(run, tmp_path):
    refused(run, Batches(how="labels on padding, of short rows"), "make_collator", eval=HELD_OUT)
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_31_a_collator_of_the_user_may_train_fewer_tokens_and_this_is_logged(run, caplog):
    rows = [{"text": row["prompt"] + row["completion"]} for row in ROWS]
    with caplog.at_level(logging.WARNING):
        run(rows=rows, collator=only_last)
    assert "Pipeline(collator=...): it trains" in caplog.text


def test_31_a_collator_of_the_user_may_not_train_more_tokens(run):
    collator = DataCollatorForLanguageModeling(tiny_tokenizer(), mlm=False)
    with pytest.raises(SftkitError, match=r"Pipeline\(collator=\.\.\.\): .* tokens that the formatter does not train"):
        run(collator=lambda examples: collator([{"input_ids": each["input_ids"].tolist()} for each in examples]))


@every(FORMATTERS)
def test_32_a_formatter_with_a_mistake_is_refused(run, how):
    refused(run, Format(how=how), "make_formatter")


@every(PACKERS)
def test_32_a_packer_that_changes_documents_is_refused(run, how):
    refused(run, Pack(how=how), "make_packer")


@every(TOKENS)
def test_33_tokens_that_the_model_knows_stay(run, how):
    refused(run, Tokens(how=how), "add_tokens")


@every(TOKENIZERS)
def test_33_a_tokenizer_that_is_none_is_refused(run, how):
    refused(run, Tokenizer(how=how), "load_tokenizer")


@every(LOADERS)
def test_33_a_model_that_was_not_asked_for_is_refused(run, how):
    refused(run, Loader(how=how), "load_model")


@pytest.mark.slow
def test_33_tokens_without_rows_in_the_embeddings_are_refused(run):
    refused(run, Resize(), "resize_embeddings", model=tiny_model(vocab_size=290))


@every(ADAPTED)
def test_33_an_adapted_model_that_cannot_be_trained_is_refused(run, how):
    refused(run, Adapter(how=how), "adapt_model")


@every(LOSSES)
def test_33_a_loss_that_trains_nothing_is_refused(run, how):
    refused(run, Loss(how=how), "make_loss")


@every(CALLBACKS)
def test_33_callbacks_that_are_none_are_refused(run, how):
    refused(run, Callbacks(how=how), "trainer_callbacks")


@every(METRICS)
def test_33_metrics_that_are_no_functions_are_refused(run, how):
    refused(run, Metrics(how=how), "metrics", eval=HELD_OUT, evaluate={"metrics": ["broken"]})


@pytest.mark.slow
def test_33_a_metric_that_returns_a_text_is_refused(run):
    settings = {"metrics": ["broken"], "max_new_tokens": 2, "rows": 2}
    with pytest.raises(SftkitError, match="the metric broken returns 'much'"):
        run(Metrics(how="returns functions of strings"), eval=HELD_OUT, evaluate=settings)


@pytest.mark.parametrize(("found", "what"), [(["too long"], "'too long', which is no Problem"), ("no", "returns 'no'")])
def test_problems_that_are_none_are_an_error(run, found, what):
    @dataclass(frozen=True, kw_only=True)
    class Reports(Plugin):
        """Reports something else than problems."""

        @hookimpl
        def check_run(self):
            return found

    with pytest.raises(SftkitError, match=rf"hook check_run: it .*{what} -> yield Problem"):
        run(Reports())


@pytest.mark.parametrize(("made", "what"), [({}, "an object of type dict"), (Engine, "the class Engine")])
def test_an_engine_that_is_none_is_an_error(run, made, what):
    @dataclass(frozen=True, kw_only=True)
    class Makes(Plugin):
        """Makes something else than an engine."""

        @hookimpl
        def make_engine(self):
            return made

    with pytest.raises(SftkitError, match=f"hook make_engine: it returns {what}, which is no Engine -> return"):
        run(Makes())
