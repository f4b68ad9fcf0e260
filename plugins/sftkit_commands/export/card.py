"""The model card: what is known of a run, without local paths."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from sftkit.api import base_of, is_adapter, was_loaded

if TYPE_CHECKING:
    from sftkit_commands.export.job import Report, Wanted

TEMPLATE = Path(__file__).with_name("card.md.jinja")
#: Fields of the section ``train`` that the card shows, if the run has set them.
HYPERPARAMETERS = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "warmup_ratio", "optim", "weight_decay", "max_grad_norm"),
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("bf16", "fp16", "seed", "neftune_noise_alpha", "label_smoothing_factor"),
)


def write_card(directory: Path, wanted: Wanted, report: Report, manifest: Mapping[str, Any] | None) -> None:
    """Write ``README.md`` into an exported directory."""
    from huggingface_hub import ModelCard, ModelCardData
    from jinja2 import Environment, StrictUndefined

    base = _base(wanted.run, manifest)
    sources = list(dict.fromkeys(public_name(name) for name in _sources(manifest)))
    name = wanted.push_to_hub or wanted.to.absolute().name
    data = ModelCardData(
        base_model=base if base and _on_hub(base) else None,
        datasets=[source for source in sources if _on_hub(source) and "/" in source] or None,
        library_name="peft" if report.kind == "adapter" else "transformers",
        pipeline_tag="text-generation",
        tags=["sftkit", "sft"],
    )
    environment = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, autoescape=False)
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=name.rpartition("/")[2],
        base=public_name(base) if base else "",
        name=name if wanted.push_to_hub else f"path/to/{name}",
        kind=report.kind,
        sources=sources,
        report=report,
        run=_facts(manifest),
        version=metadata.version("sftkit-train"),
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(directory / "README.md")


def public_name(name: str) -> str:
    """A name without the directories of this machine: of a path its last part, any other name unchanged."""
    paths: tuple[PurePath, ...] = (PurePosixPath(name), PureWindowsPath(name))
    if any(path.is_absolute() for path in paths) or name.startswith((".", "~")) or os.path.exists(name):
        return next(path.name for path in reversed(paths) if len(path.parts) > 1 or path is paths[0])
    return name


def without_paths(value: Any) -> Any:
    """Plain data whose paths have only their last part."""
    if isinstance(value, Mapping):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    return public_name(value) if isinstance(value, str) and len(value) < 1000 else value


def _base(run: str, manifest: Mapping[str, Any] | None) -> str:
    if is_adapter(run):
        return base_of(run)[0]
    return str(manifest["config"]["model"]["name"]) if manifest else ""


def _sources(manifest: Mapping[str, Any] | None) -> Iterator[str]:
    section = (manifest or {}).get("config", {}).get("data", {})
    for value in (section.get("train"), section.get("mix")):
        yield from [value] if isinstance(value, str) else [*(value or ())]


def _on_hub(name: str) -> bool:
    """Whether a name may be one of the hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return public_name(name) == name and not was_loaded(name) and "/" in name


def _facts(manifest: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the card says of a run; None for a model that no run trained."""
    if manifest is None:
        return None
    train, options = manifest["train"], manifest["config"]["plugins"]
    named = {name: train[name] for name in HYPERPARAMETERS if train.get(name) is not None}
    plugins = [
        {
            "name": name,
            "version": item.get("version", ""),
            "options": _options(options.get(name, {})),
        }
        for name, item in manifest["plugins"].items()
    ]
    data = [
        {"name": name, **{key: counts.get(key, "") for key in ("rows", "tokens", "trained tokens")}}
        for name, counts in manifest["data"].items()
    ]
    metrics = {name: value for name, value in manifest["metrics"].items() if isinstance(value, int | float)}
    return {
        "status": manifest["status"],
        "hyperparameters": named,
        "max_length": manifest["config"]["data"].get("max_length"),
        "plugins": plugins,
        "data": data,
        "metrics": metrics,
        "versions": manifest["versions"],
        "steps": max((part.get("to_step") or 0 for part in manifest["parts"]), default=0),
    }


def _options(options: Mapping[str, Any]) -> str:
    """The options of a plugin that are set, in one line."""
    kept = {name: value for name, value in without_paths(options).items() if value not in (None, {}, [], "")}
    return ", ".join(f"{name}={value}" for name, value in kept.items()).replace("|", "\\|").replace("\n", " ")
