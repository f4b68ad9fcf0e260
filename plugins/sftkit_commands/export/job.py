"""The flow of an export: load, merge, prove, write, read back, convert."""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.api import (
    ConfigError,
    Problem,
    RunError,
    SftkitError,
    base_of,
    free_bytes,
    is_adapter,
    load_trained,
    manifest_of,
    merged_model,
    new_directory,
    quantization_of,
    quantization_settings,
    quantize_model,
    quantizer,
    requirement_problem,
    size_text,
)
from sftkit_commands.export.card import write_card
from sftkit_commands.export.convert import check_convertible, convert
from sftkit_commands.export.hub import check_hub, push
from sftkit_commands.export.model import (
    read_back,
    require_same_tokenizer,
    require_same_weights,
    say,
    write_adapter,
    write_model,
)
from sftkit_commands.export.proof import Comparison, compare, logits_of, require_same
from sftkit_commands.export.rows import Rows, rows_of

if TYPE_CHECKING:
    from sftkit.api import TrainedModel

WEIGHT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Wanted:
    """What is to be exported, and how; the options of the command.

    Attributes:
        run: a run directory, a checkpoint in one, or any other model.
        to: the new directory.
        merge: whether to merge the adapter.
        dtype: of the written weights; None for that of the run.
        quantize: a plugin that quantizes, with its options, as for ``--plugin``.
        gguf: whether to write a GGUF file too.
        gguf_type: the type of its matrices; None for that of ``dtype``.
        ollama: whether to write a Modelfile too.
        push_to_hub: name of a repository on the hub; empty for none.
        public: whether a new repository is public.
        data: rows to compare on, instead of those of the run.
        rows: their number.
        plugins: further plugins that load the model.
        device: where it is loaded.
        trust_remote_code: whether code that comes with the model may run.
    """

    run: str
    to: Path
    merge: bool = False
    dtype: str | None = None
    quantize: str = ""
    gguf: bool = False
    gguf_type: str | None = None
    ollama: bool = False
    push_to_hub: str = ""
    public: bool = False
    data: str = ""
    rows: int = 16
    plugins: Sequence[str] = ()
    device: str = "cpu"
    trust_remote_code: bool = False

    @property
    def converts(self) -> bool:
        """Whether a GGUF file is written."""
        return self.gguf or self.ollama

    @property
    def merges(self) -> bool:
        """Whether an adapter is merged, which quantizing and GGUF need."""
        return is_adapter(self.run) and (self.merge or self.converts or bool(self.quantize))


@dataclass
class Report:
    """What was done; filled while it is done.

    Attributes:
        kind: ``adapter``, ``merged`` or ``model``; what is in the directory.
        dtype: of the weights.
        rows: where the rows come from that models were compared on; empty if none were.
        proof: comparisons by name.
        gguf: facts about the GGUF file.
        notes: what the user should know.
        pushed: address on the hub.
    """

    kind: str = ""
    dtype: str = ""
    rows: str = ""
    proof: dict[str, Comparison] = field(default_factory=dict)
    gguf: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    pushed: str = ""


def export(wanted: Wanted) -> tuple[Report, dict[str, int]]:
    """Export a model; returns what was done, and the size of each file.

    Raises:
        ConfigError: if it cannot be done as wanted; nothing is written then.
        RunError: if what was written is not what was trained; it is removed then. Or if the hub refuses it; it is kept.
    """
    if problems := list(_problems(wanted)):
        raise ConfigError(problems)
    if wanted.quantize:
        quantizer(wanted.quantize)
    if wanted.push_to_hub:
        check_hub(wanted.push_to_hub)
    report = Report()
    with new_directory(wanted.to, "--to") as partial:
        if is_adapter(wanted.run) and not wanted.merges:
            manifest = _export_adapter(wanted, partial, report)
        else:
            manifest = _export_model(wanted, partial, report)
        write_card(partial, wanted, report, manifest)
        sizes = {
            path.relative_to(partial).as_posix(): path.stat().st_size
            for path in sorted(partial.rglob("*"))
            if path.is_file()
        }
    if wanted.push_to_hub:
        report.pushed = push(wanted.to, wanted.push_to_hub, private=not wanted.public)
    return report, sizes


def _problems(wanted: Wanted) -> Any:
    adapter = is_adapter(wanted.run)
    if wanted.merge and not Path(wanted.run).is_dir():
        yield Problem("there is no such directory", wanted.run, "name the directory of a run, or of an adapter")
    elif wanted.merge and not adapter:
        yield Problem("the model has no adapter: there is nothing to merge", wanted.run, "remove --merge")
    if wanted.dtype and adapter and not wanted.merges:
        yield Problem("an adapter is exported as it is", "--dtype", "add --merge, or remove --dtype")
    if wanted.quantize and wanted.converts:
        what = "a quantized model cannot be written as GGUF"
        yield Problem(what, "--quantize", "remove it, and use --gguf-type q8_0")
    if wanted.gguf_type and not wanted.converts:
        yield Problem("no GGUF file is written", "--gguf-type", "add --gguf")
    if wanted.public and not wanted.push_to_hub:
        yield Problem("nothing is pushed to the hub", "--public", "add --push-to-hub NAME")
    if wanted.converts and (problem := requirement_problem("gguf>=0.17", "--gguf")):
        yield problem
    stored = quantization_of(wanted.run)
    if stored and (wanted.merges or not adapter):
        what = f"the {'base of the adapter' if adapter else 'model'} is a checkpoint quantized by "
        fix = "export it without --merge, --gguf and --quantize" if adapter else "copy its directory"
        if adapter:
            fix += ", or write the name of the unquantized base into its adapter_config.json"
        yield Problem(f"{what}{stored.get('quant_method')}", wanted.run, fix)


def _export_adapter(wanted: Wanted, target: Path, report: Report) -> Any:
    report.kind = "adapter"
    write_adapter(Path(wanted.run), target)
    base, _ = base_of(wanted.run)
    if Path(base).exists():
        report.notes.append("the adapter names its base by a local directory: it loads on this machine only")
    return manifest_of(wanted.run)


def _export_model(wanted: Wanted, target: Path, report: Report) -> Any:
    import torch

    merges = wanted.merges
    report.kind = "merged" if merges else "model"
    say("loading %s", wanted.run)
    trained = load_trained(
        wanted.run,
        dtype="float32" if merges else wanted.dtype or "auto",
        quantized=not merges,
        plugins=wanted.plugins,
        device=wanted.device,
        trust_remote_code=wanted.trust_remote_code,
    )
    report.dtype = wanted.dtype or _dtype_of(trained, merges)
    vocabulary = check_convertible(trained, wanted.ollama) if wanted.converts else None
    rows = None
    if merges or wanted.quantize or wanted.data:
        rows = rows_of(trained, wanted.rows, wanted.data)
        report.rows, report.notes = rows.source, [*report.notes, *rows.notes]
    _check_space(trained.model, wanted, report.dtype)
    model, reference = trained.model, None
    if merges:
        assert rows is not None
        model, reference = _merged(trained, rows, report)
        if trained.left_out:
            report.proof |= _against_quantized(wanted, rows, reference, report)
    model = model.to(getattr(torch, report.dtype))
    write_model(model, trained, target)
    read, tokenizer = read_back(target, trained, wanted.trust_remote_code)
    require_same_weights(model, read)
    require_same_tokenizer(trained.tokenizer, tokenizer, rows.ids if rows else [])
    trained, model = replace(trained, model=None), None
    gc.collect()  # before the logits of the one that was read back take memory
    if reference is not None:
        assert rows is not None
        say("comparing what was written, on %s", report.rows)
        found = compare(reference, logits_of(read.float().to(wanted.device), rows.batches))
        require_same(found, report.dtype, "what was written differs from the model with its adapter", wanted.run)
        report.proof["written"] = found
    if vocabulary is not None:
        convert(read.float().cpu(), vocabulary, tokenizer, target, wanted, report, rows)
    if wanted.quantize:
        assert rows is not None
        _quantize(wanted, target, rows, read.float().to(wanted.device), report)
    return trained.manifest


def _merged(trained: TrainedModel, rows: Rows, report: Report) -> tuple[Any, list[Any]]:
    """The merged model in float32, and the logits of the unmerged one."""
    say("merging the adapter in float32")
    reference = logits_of(trained.model, rows.batches)
    model = merged_model(trained)
    report.proof["merged"] = found = compare(reference, logits_of(model, rows.batches))
    require_same(found, "float32", "the merged model differs from the model with its adapter", trained.name)
    return model, reference


def _against_quantized(wanted: Wanted, rows: Rows, reference: list[Any], report: Report) -> dict[str, Comparison]:
    """The comparison with the model as it was trained, on a quantized base; it has no tolerance."""
    trust = wanted.trust_remote_code
    try:
        quantized = load_trained(
            wanted.run, plugins=wanted.plugins, device=wanted.device, trust_remote_code=trust
        ).model
        if not quantization_settings(quantized):
            return {}
        return {"quantized base": compare(reference, logits_of(quantized, rows.batches))}
    except (SftkitError, RuntimeError) as error:  # the device may lack its kernels
        reason = error.problems[0].what if isinstance(error, SftkitError) else str(error).splitlines()[0]
        report.notes.append(f"not compared with the quantized base of the training: {reason}")
        return {}


def _quantize(wanted: Wanted, target: Path, rows: Rows, model: Any, report: Report) -> None:
    """Replace the model in a directory by its quantized one."""
    say("quantizing with %s", wanted.quantize)
    reference = logits_of(model, rows.batches)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{target.name}.") as directory:
        quantized = Path(directory)
        logits = quantize_model(wanted.quantize, target, quantized, rows.calibration, rows.ids)
        report.proof["quantized"] = compare(reference, list(logits))
        for path in [*target.glob("model*.safetensors"), *target.glob("model.safetensors.index.json")]:
            path.unlink()
        for path in quantized.iterdir():
            shutil.move(path, target / path.name)
    report.kind = "quantized"


def _dtype_of(trained: TrainedModel, merges: bool) -> str:
    """The dtype to write: that of the run, else of the checkpoint, which a merge has loaded in float32."""
    if not merges:
        return str(trained.model.dtype).removeprefix("torch.")
    section = (trained.manifest or {}).get("config", {}).get("model", {})
    if section.get("dtype", "auto") != "auto":
        return str(section["dtype"])
    from transformers import AutoConfig

    name, revision = base_of(trained.name)
    stored = AutoConfig.from_pretrained(name, revision=revision).dtype
    return str(stored or "float32").removeprefix("torch.")


def _check_space(model: Any, wanted: Wanted, dtype: str) -> None:
    """Raises:
    RunError: if the disk has too little space.
    """
    weights = sum(value.numel() for value in model.parameters())
    copies = 1 + wanted.converts + bool(wanted.quantize)
    needed = int(weights * WEIGHT_BYTES[dtype] * copies * 1.02)
    if needed > (free := free_bytes(wanted.to)):
        what = f"the export needs {size_text(needed)} of disk space, and {size_text(free)} are free"
        raise RunError(Problem(what, str(wanted.to), "free some space, or choose another directory"))
