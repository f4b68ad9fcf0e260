"""What is written beside the model stays where it belongs, and leaves the model alone; engines and quantizers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.testing.conformance.checks import CheckFailed, check, require, skip
from sftkit.testing.conformance.state import ModelState, summary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sftkit.testing.conformance.workbench import Workbench


def _files(directory: Path) -> dict[str, tuple[int, int]]:
    """The files in a directory, with size and time of change."""
    found = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


@contextmanager
def _inside(directory: Path) -> Iterator[None]:
    """Another working directory."""
    before = Path.cwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)


@check("export_model")
def writes_inside(bench: Workbench, hook: str) -> None:
    """It writes only into new folders inside the run directory, and leaves model and files"""
    outer = bench.directory / "exported"
    directory, elsewhere = outer / "run", outer / "elsewhere"
    elsewhere.mkdir(parents=True)
    model, tokenizer = bench.model().eval(), bench.tokenizer()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    saved, state = _files(directory), ModelState.of(model)
    with _inside(elsewhere):
        bench.own("export_model", model=model, tokenizer=tokenizer, directory=directory)
    fix = "write into a new folder inside `directory`, by absolute paths"
    strays = [name for name in _files(outer) if not name.startswith("run/")]
    require(not strays, f"it writes {', '.join(strays[:3])} outside the run directory", fix)
    now = _files(directory)
    changed = [name for name in saved if now.get(name) != saved[name]]
    require(not changed, f"it changes {', '.join(changed[:3])} of the saved model", fix)
    loose = [name for name in now if name not in saved and "/" not in name]
    loose = [name for name in loose if name not in type(bench.plugin).writes]
    require(not loose, f"it writes {', '.join(loose[:3])} beside the files of the model", fix)
    touched = summary(state.tensor_changes(ModelState.of(model)))
    require(not touched, f"it changes the model: {touched}", "export a copy of the model")


@check("make_engine")
def engine_is_one(bench: Workbench, hook: str) -> None:
    """It returns an Engine whose training arguments exist"""
    from sftkit.config.train_fields import training_fields
    from sftkit.training.engine import Engine

    engine = bench.own("make_engine", config=bench.config)
    if engine is None:
        skip("it has no engine for the kit's run")
    what = f"it returns {type(engine).__name__}, which is no Engine"
    require(isinstance(engine, Engine), what, "derive the class from sftkit.api.Engine")
    try:
        arguments = engine.arguments()
        require(isinstance(arguments, Mapping), f"arguments() returns {arguments!r:.60}", "return a mapping")
        unknown = [name for name in arguments if name not in training_fields()]
        require(not unknown, f"TrainingArguments has no field {', '.join(unknown)}", "correct what arguments() returns")
        require(engine.name != Engine.name, "the engine has the name of the default", "set the class attribute name")
    finally:
        engine.close()


@check("quantize_model")
def quantized_can_be_read(bench: Workbench, hook: str) -> None:
    """It writes a model into the target, leaves the source, and returns logits of each probe"""
    source, target = bench.model_directory, bench.directory / "quantized"
    target.mkdir()
    size = bench.model().get_input_embeddings().weight.shape[0]
    rows: Any = [[(7 * row + place) % size for place in range(24)] for row in range(8)]
    probes = [[5, 6, 7, 8], [9, 10]]
    before = _files(source)
    logits = bench.own("quantize_model", source=source, target=target, rows=rows, probes=probes)
    if logits is None:
        skip("it leaves the kit's model to another plugin")
    require(_files(source) == before, "it changes files of the source", "write into target only")
    require((target / "config.json").is_file(), "target has no config.json", "save the model with save_pretrained")
    shapes = [tuple(each.shape) for each in logits]
    expected = [(len(probe), size) for probe in probes]
    if shapes != expected:
        raise CheckFailed(f"the logits have the shapes {shapes}", f"return {expected}: [tokens, vocabulary] a probe")
