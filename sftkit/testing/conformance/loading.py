"""Tokenizers and models are loaded as the configuration says, and grow without losing anything."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sftkit.testing.conformance.checks import check, require, skip
from sftkit.testing.conformance.kernels import LOGITS, distance, results

if TYPE_CHECKING:
    from sftkit.testing.conformance.workbench import Workbench

TEXT = "What is 3 plus one? It is 4."


@check("load_tokenizer")
def reads_text(bench: Workbench, hook: str) -> None:
    """The tokenizer reads text and writes it again"""
    from sftkit.models.embeddings import split_processor

    loaded = bench.own("load_tokenizer", config=bench.config)
    if loaded is None:
        skip("it leaves the tokenizer of the kit's run to another plugin")
    tokenizer, _ = split_processor(loaded)
    again = tokenizer.decode(tokenizer(TEXT)["input_ids"], skip_special_tokens=True)
    fix = "return the tokenizer of config.model.tokenizer or config.model.name"
    require(again.strip() == TEXT, f"{TEXT!r} is read and written as {again!r}", fix)


@check("add_tokens")
def only_adds(bench: Workbench, hook: str) -> None:
    """It adds tokens, and leaves those that are there"""
    tokenizer = bench.tokenizer()
    before, ids = tokenizer.get_vocab(), tokenizer(TEXT)["input_ids"]
    bench.own("add_tokens", tokenizer=tokenizer, config=bench.config)
    after = tokenizer.get_vocab()
    changed = [token for token, number in before.items() if after.get(token) != number]
    fix = "add tokens with tokenizer.add_tokens, and remove or renumber none"
    require(not changed, f"{len(changed)} tokens are gone or have another id, such as {changed[:1]}", fix)
    new = [token for token in after.keys() - before.keys() if token in TEXT]
    require(new or tokenizer(TEXT)["input_ids"] == ids, "plain text is tokenized into other ids", fix)


@check("add_tokens")
def adds_once(bench: Workbench, hook: str) -> None:
    """A second call, as after resuming with the saved tokenizer, adds nothing"""
    tokenizer = bench.tokenizer()
    bench.own("add_tokens", tokenizer=tokenizer, config=bench.config)
    size, template = len(tokenizer), tokenizer.chat_template
    bench.own("add_tokens", tokenizer=tokenizer, config=bench.config)
    require(len(tokenizer) == size, f"it adds {len(tokenizer) - size} more tokens", "add what is not there yet")
    require(tokenizer.chat_template == template, "it changes the chat template again", "set it, and append nothing")


@check("resize_embeddings")
def rows_are_kept(bench: Workbench, hook: str) -> None:
    """Every token gets a row, and the rows that are there stay, bit by bit"""
    import torch

    tokenizer, model = bench.tokenizer(), bench.model()
    old = model.get_input_embeddings().weight.detach().clone()
    tokenizer.add_tokens([f"<|kit {number}|>" for number in range(old.shape[0] - len(tokenizer) + 3)])
    new = list(range(old.shape[0], len(tokenizer)))
    done = bench.own("resize_embeddings", model=model, tokenizer=tokenizer, new_token_ids=new)
    if done is None:
        skip("it leaves the embeddings of the kit's run to another plugin")
    weight = model.get_input_embeddings().weight.detach()
    fix = "use grow_embeddings of sftkit.api"
    require(done is True, f"it returns {done!r}", "return True when done, and None to leave it to another plugin")
    require(weight.shape[0] >= len(tokenizer), f"{weight.shape[0]} rows for {len(tokenizer)} tokens", fix)
    require(torch.equal(weight[: old.shape[0]], old), "it changes rows of tokens that were there", fix)
    require(bool(weight.isfinite().all()), "new rows are not finite", fix)
    heads = model.get_output_embeddings()
    rows = weight.shape[0] if heads is None else heads.weight.shape[0]
    require(rows == weight.shape[0], f"the output embeddings have {rows} rows, and the input {weight.shape[0]}", fix)


@check("model_options")
def options_by_name(bench: Workbench, hook: str) -> None:
    """It returns options of from_pretrained by name"""
    options = bench.own("model_options", config=bench.config)
    right = isinstance(options, Mapping) and all(isinstance(name, str) for name in options)
    require(right, f"it returns {options!r:.80}", "return a mapping of names to values; {} for none")


@check("load_model")
def loads_the_weights(bench: Workbench, hook: str) -> None:
    """The model has the weights of the checkpoint, in the wanted dtype"""
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedModel

    from sftkit.models.adapters import changed_configuration
    from sftkit.models.quantized import quantization_settings

    options = bench.plugins.model_options(bench.config)
    model = bench.own("load_model", config=bench.config, options=options)
    if model is None:
        skip("it leaves the model of the kit's run to another plugin")
    what = f"it returns {type(model).__name__}, which is no PreTrainedModel"
    require(isinstance(model, PreTrainedModel), what, "load it with transformers")
    if quantization_settings(model):
        skip("it quantizes the model, which then computes something else")
    dtype, wanted = model.get_input_embeddings().weight.dtype, bench.config.model.dtype
    right = wanted == "auto" or dtype == getattr(torch, wanted)
    require(right, f"the weights are {dtype}, and model.dtype is {wanted}", "pass config.model.dtype on")
    changed = changed_configuration(model, options)
    plain = AutoModelForCausalLM.from_pretrained(bench.model_directory, dtype=dtype, **changed).to(bench.device)
    model = model.to(bench.device)
    batch = bench.batch(model)
    apart = distance(results(model.eval(), batch)["logits"][""], results(plain.eval(), batch)["logits"][""])
    require(apart <= LOGITS, f"its logits differ by {apart:.2g} from those of transformers", "load every weight")


@check("load_model")
def loads_the_dtype(bench: Workbench, hook: str) -> None:
    """Another dtype than that of the checkpoint is obeyed"""
    import torch

    if "dtype" in type(bench.plugin).__dataclass_fields__:
        skip("the plugin has an option for the dtype")
    config = bench.config.model_copy(update={"model": bench.config.model.model_copy(update={"dtype": "bfloat16"})})
    model = bench.own("load_model", config=config, options=bench.plugins.model_options(config))
    if model is None:
        skip("it leaves the model of the kit's run to another plugin")
    dtype = model.get_input_embeddings().weight.dtype
    fix = "pass config.model.dtype on, or call load_model(config, options, auto) of sftkit.api, which does"
    require(dtype == torch.bfloat16, f"the weights are {dtype}, and model.dtype is bfloat16", fix)


@check("attach_adapter")
def adapter_arrives(bench: Workbench, hook: str) -> None:
    """The adapter is on the model, with its weights, and can be trained"""
    trained, stages, base = adapter_run(bench)
    model = bench.own("attach_adapter", model=base, config=stages.config)
    if model is None:
        skip("it leaves the adapter of the kit's run to another plugin")
    require(any(each.requires_grad for each in model.parameters()), "nothing can be trained", "load it trainable")
    batch = bench.batch(trained)
    model = model.to(bench.device)
    apart = distance(results(model.eval(), batch)["logits"][""], results(trained.eval(), batch)["logits"][""])
    fix = "load the adapter's weights from config.model.name"
    require(apart <= LOGITS, f"its logits differ by {apart:.2g} from those of the model that was saved", fix)


@check("merge_adapter")
def merged_is_the_same(bench: Workbench, hook: str) -> None:
    """The merged model has no adapter, and computes what the model with it computes"""
    from sftkit.models.inspect import has_adapter

    _, stages, base = adapter_run(bench)
    model = stages.plugins.hook.attach_adapter(model=base, config=stages.config).to(bench.device)
    batch = bench.batch(model)
    expected = results(model.eval(), batch)["logits"][""]
    merged = bench.own("merge_adapter", model=model, config=stages.config)
    if merged is None:
        skip("it leaves the adapter of the kit's run to another plugin")
    require(not has_adapter(merged), "the model still has its adapter", "return the base model with merged weights")
    for weight in merged.parameters():
        weight.requires_grad_(True)
    apart = distance(results(merged.eval(), batch)["logits"][""], expected)
    fix = "add the adapter to the weights with its whole scale"
    require(apart <= LOGITS, f"the logits of the merged model differ by {apart:.2g}", fix)


def adapter_run(bench: Workbench) -> tuple[Any, Any, Any]:
    """A model with an adapter that was saved, the stages of a run that begins with it, and its base model.

    Raises:
        CheckSkipped: if no plugin adds adapters.
    """
    import torch

    directory = bench.directory / "adapter"
    adding = bench.pipeline(directory, [bench.adapter]).stages()
    from sftkit.models.adapt import adapted_model

    model = adapted_model(bench.model(), adding.config, adding.plugins, [])
    if not getattr(model, "peft_config", None):
        skip(f"plugin {bench.adapter} adds no adapter of peft")
    torch.manual_seed(1)
    for weight in model.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.1)  # a new adapter changes nothing
    for settings in model.peft_config.values():
        settings.base_model_name_or_path = str(bench.model_directory)
    model.save_pretrained(directory)
    bench.tokenizer().save_pretrained(directory)
    sections = copy.deepcopy(bench.sections(bench.directory / "continued"))
    sections["model"] = {"name": str(directory)}
    from sftkit.run.pipeline import Pipeline

    stages = Pipeline(config=sections, plugins=[bench.plugin, *bench.beside]).stages()
    base = stages.plugins.hook.load_model(config=stages.config, options={})
    return model, stages, base
