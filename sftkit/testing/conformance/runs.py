"""Real runs of two steps: with the plugin alone, with an adapter, and in two processes."""

from __future__ import annotations

import math
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from sftkit.errors import SftkitError
from sftkit.testing.conformance.checks import RUN, CheckFailed, check, require, skip
from sftkit.testing.conformance.kernels import LOGITS, distance

if TYPE_CHECKING:
    from sftkit.run.result import RunResult
    from sftkit.testing.conformance.workbench import Workbench

SECONDS = 300  # after which two processes hang
LOADS = "save every weight under the name that transformers gives it"


@check(subject=RUN)
def trains_alone(bench: Workbench, subject: str) -> None:
    """Two steps train a model that plain transformers loads"""
    result = bench.pipeline(bench.directory / "run").run()
    _check_result(bench, result)
    _check_files(bench, result)


@check(subject=RUN)
def trains_with_adapter(bench: Workbench, subject: str) -> None:
    """Two steps train an adapter that is loaded again"""
    if "adapt_model" in bench.filled and not bench.wraps("adapt_model"):
        skip("the plugin adapts the model itself")
    pipeline = bench.pipeline(bench.directory / "adapted", [bench.adapter])
    if problems := pipeline.check():
        skip(f"it is refused beside {bench.adapter}: {SftkitError(problems)}")
    _check_result(bench, pipeline.run())


def _check_result(bench: Workbench, result: RunResult) -> None:
    """The metrics, the weights and the saved model of a run."""
    from sftkit.models.inspect import has_adapter

    wrong = {name: value for name, value in result.metrics.items() if not math.isfinite(value)}
    require(not wrong, f"metrics are not finite: {wrong}", "look at the loss and its gradients")
    before = dict(_plain_model(bench, bench.model_directory).named_parameters())
    trained = result.model.eval()
    if has_adapter(trained):
        loaded = _adapter_model(bench, result.directory)
    else:
        loaded = _plain_model(bench, result.directory)
        same = all(name in before and weight.equal(before[name]) for name, weight in loaded.named_parameters())
        require(not same, "two steps change no weight", "let gradients reach the weights")
    trained = trained.to(bench.device)
    apart = distance(_logits(bench, loaded), _logits(bench, trained))
    require(apart <= LOGITS, f"the saved model computes logits that differ by {apart:.2g} from the trained one", LOADS)


def _check_files(bench: Workbench, result: RunResult) -> None:
    """Files that a run writes are known to it, so that --overwrite removes them."""
    from sftkit.checkpoints.choice import NAME
    from sftkit.run.lock import LOCK
    from sftkit.run.manifest import MANIFEST, read_manifest
    from sftkit.run.sample_rows import ROWS
    from sftkit.run.written import LOG

    manifest = read_manifest(result.directory) or {}
    known = {PurePosixPath(name).parts[0] for name in [*manifest["files"], *manifest["writes"]]}
    known |= {LOG, ROWS, MANIFEST, LOCK}
    strays = [
        path.name for path in result.directory.iterdir() if path.name not in known and not NAME.fullmatch(path.name)
    ]
    fix = "list it in the class attribute writes: --overwrite removes what is listed there"
    require(not strays, f"the run directory has {', '.join(strays)}, which the plugin does not declare", fix)


def _plain_model(bench: Workbench, directory: Path) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        model, found = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    except Exception as error:  # whatever transformers raises
        raise CheckFailed(
            f"transformers cannot load the saved model: {type(error).__name__}: {error}", LOADS
        ) from error
    lost = [*found["missing_keys"], *found["unexpected_keys"]]
    require(not lost, f"the saved model lacks weights, or has others: {', '.join(map(str, lost[:3]))}", LOADS)
    return model.eval().to(bench.device)


def _adapter_model(bench: Workbench, directory: Path) -> Any:
    from sftkit.trained.loading import load_trained

    return load_trained(directory, base=bench.model_directory, device=bench.device).model


def _logits(bench: Workbench, model: Any) -> Any:
    import torch

    model = model.eval()
    ids = torch.arange(10, 30, device=bench.device).unsqueeze(0)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits


@check(subject=RUN, anywhere=True, processes=True)
def trains_in_two_processes(bench: Workbench, subject: str) -> None:
    """Two steps in two processes train a model that plain transformers loads"""
    import torch

    from sftkit.testing.processes import start_group, warm_processes

    if type(bench.plugin).needs_gpu and torch.cuda.device_count() < 2:
        skip("it needs a GPU for each process")
    path, output = bench.directory / "two.yaml", bench.directory / "two"
    path.write_text(_written(bench, output), encoding="utf-8")
    arguments = ["run", str(path), f"train.output_dir={output}", "--log-level", "warning"]
    cache, printed = str(bench.directory / "cache"), bench.directory / "printed"
    context = warm_processes()
    with start_group(context, arguments, cwd=bench.directory, printed=printed, env={"SFTKIT_CACHE": cache}) as group:
        codes = group.wait(SECONDS)
    if codes == [0, 0]:
        model = _plain_model(bench, output) if (output / "config.json").exists() else _adapter_model(bench, output)
        require(_logits(bench, model).isfinite().all(), "the logits of the saved model are not finite", LOADS)
        return
    ended = [line for text in group.outputs for line in text.splitlines() if line.strip()][-12:]
    if 2 in codes and (bench.refused or bench.refusals):
        skip(f"two processes are refused: {' '.join(ended[-1:])}")
    what = f"the processes end with the exit codes {codes}: {' | '.join(ended)}"
    raise CheckFailed(what, "do in each process what the others do, in the same order")


def _written(bench: Workbench, output: Path) -> str:
    """The configuration as a file that other processes read.

    Raises:
        CheckSkipped: if the plugin cannot be named in a file.
    """
    from sftkit.config import RunConfig
    from sftkit.config.source import NOT_WRITTEN, ConfigSource
    from sftkit.plugin.select import choices_from, select
    from sftkit.run.config_file import write_config
    from sftkit.run.inputs import RunInputs

    module = sys.modules[type(bench.plugin).__module__]
    if not getattr(module, "__file__", None) or module.__name__ == "__main__":
        skip(f"another process cannot import the module {module.__name__}")
    plugins, problems = select(choices_from(ConfigSource({"plugins": [bench.plugin, *bench.beside]})))
    if plugins is None:
        raise SftkitError(problems)
    sections = bench.sections(output, use_cpu=not type(bench.plugin).needs_gpu)
    folder = Path(str(module.__file__)).resolve()
    for _ in range(module.__name__.count(".") + 1 + (folder.stem == "__init__")):
        folder = folder.parent
    sections["run"] = {"modules": [str(folder)]}
    config = RunConfig(**sections, plugins=plugins.options())
    text = write_config(config, plugins, ConfigSource(sections), RunInputs(), output).text
    if f"\n{NOT_WRITTEN}:" in text:
        skip("its options cannot be written into a configuration file")
    return text
