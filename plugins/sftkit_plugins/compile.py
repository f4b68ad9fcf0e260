"""Compiles the decoder layers with torch.compile, once for all lengths."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

from sftkit.api import ConfigError, Field, Plugin, Problem, base_model, dataclass, hookimpl, nearest

if TYPE_CHECKING:
    from sftkit.api import RunConfig

Mode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


@dataclass(frozen=True, kw_only=True)
class Compile(Plugin):
    """Compiles the model's layers with torch.compile while training, once for all lengths.

    Source: Ansel et al., 2024, PyTorch 2: Faster Machine Learning Through Dynamic Python Bytecode Transformation and
    Graph Compilation.
    """

    regions: Annotated[
        Literal["layers", "model"],
        Field(description="layers: the repeated decoder layers, which share compiled code; model: the whole decoder"),
    ] = "layers"
    backend: Annotated[str, Field(description="inductor, aot_eager, eager, ...: any backend of torch.compile")] = (
        "inductor"
    )
    mode: Annotated[Mode | None, Field(description="what inductor optimises for, such as max-autotune")] = None
    fullgraph: Annotated[bool, Field(description="raise an error if a region cannot be compiled as a whole")] = False

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """Refuses a model that would be compiled twice, an unknown backend, and a machine without a compiler."""
        for name in ("torch_compile", "torch_compile_backend", "torch_compile_mode"):
            if config.train.get(name):
                what = "the model would be compiled twice, here and by the plugin compile"
                yield Problem(what, f"train.{name}", f"remove train.{name}", ("train", name))
        yield from self._backend_problems()
        attention = config.plugins.get("flash_attn")
        if attention is None or attention.get("fallback"):  # which gives way to this plugin
            return
        if self.regions == "model":
            what = "the plugin flash_attn finds the documents of a batch outside the layers, which cannot be compiled"
            yield Problem(what, "plugin compile, option regions", "set regions: layers", ("plugins", "compile"))
        elif self.fullgraph and not _on_gpu(config):
            what = "without a GPU, the plugin flash_attn attends to one document at a time, which cannot be compiled"
            yield Problem(what, "plugin compile, option fullgraph", "set fullgraph: false", ("plugins", "compile"))

    def _backend_problems(self) -> Iterator[Problem]:
        where, key = "plugin compile, option ", ("plugins", "compile")
        if self.backend == "inductor":
            compilers = (os.environ.get("CXX"), "g++", "clang++", "cl")
            if not any(shutil.which(name) for name in compilers if name):
                fix = "install g++, or set the environment variable CXX to your compiler"
                yield Problem("inductor needs a C++ compiler, but none was found", where + "backend", fix, key)
            return
        from torch._dynamo import list_backends

        known = list_backends(exclude_tags=())
        if self.backend not in known:
            fix = nearest(self.backend, known) or f"the backends are {', '.join(known)}"
            yield Problem(f"torch.compile has no backend {self.backend!r}", where + "backend", fix, key)
        if self.mode is not None:
            yield Problem(
                "only the backend inductor has modes", where + "mode", "remove mode, or set backend: inductor", key
            )

    @hookimpl
    @contextmanager
    def training_context(self, model: Any, config: RunConfig) -> Iterator[None]:
        """Compiles the model inside the context. On exit the model is plain again, and the compiled code is released.

        Raises:
            ConfigError: if the model does not declare its layers.
        """
        import torch

        layers = decoder_layers(model)
        regions = layers if self.regions == "layers" else [decoder_around(model, layers[0])]
        options: dict[str, Any] = {"backend": self.backend, "mode": self.mode, "fullgraph": self.fullgraph}
        kinds = ", ".join(dict.fromkeys(type(region).__name__ for region in regions))
        logger = logging.getLogger("sftkit")
        logger.info("compile: %d of %s with %s; the first steps take longer", len(regions), kinds, self.backend)
        calls: list[int] = [0]
        with ExitStack() as stack:
            stack.callback(torch._dynamo.reset)  # it keeps the compiled code alive, and with it the model
            for region in regions:
                stack.enter_context(compiled(region, options, calls))
            yield
        if not calls[0]:
            logger.warning("compile: no compiled %s was called", kinds)


@contextmanager
def compiled(module: Any, options: dict[str, Any], calls: list[int]) -> Iterator[None]:
    """Compiles a module in place, so that its parameters keep their names.

    Calls with a cache, as in generation, are not compiled: every layer and every cache length would need its own
    compilation.

    Args:
        module: the module to compile.
        options: arguments for `torch.compile`.
        calls: a list of one element, which counts the compiled calls.
    """
    before = module.__dict__.get("_compiled_call_impl")
    module.compile(**options)
    fast = module._compiled_call_impl

    def call(*args: Any, **kwargs: Any) -> Any:
        if has_cache(args, kwargs):
            return module._call_impl(*args, **kwargs)
        calls[0] += 1
        mark_lengths(args, kwargs)
        return fast(*args, **kwargs)

    module._compiled_call_impl = call
    try:
        yield
    finally:
        del module._compiled_call_impl
        if before is not None:
            module._compiled_call_impl = before


def has_cache(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call receives a cache, or asks for one."""
    from transformers import Cache

    return bool(kwargs.get("use_cache")) or any(isinstance(value, Cache) for value in (*args, *kwargs.values()))


def mark_lengths(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Marks batch size and length as variable, so that torch.compile can reuse the first compilation.

    The first tensor holds hidden states ``[B, T, H]`` or token ids ``[B, T]``. The other tensors also have positions in
    their second dimension, except masks, ``[B, 1, T, T]``. The marks are hints: torch.compile recompiles if another
    dimension varies.
    """
    import torch
    from torch.utils._pytree import tree_leaves

    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    shaped = next((tensor for tensor in tensors if tensor.dim() >= 2), None)
    if shaped is None:
        return
    rows, length = shaped.shape[:2]
    for tensor in tensors:
        positions = {2: (1,), 3: (1,), 4: (2, 3)}.get(tensor.dim(), ())
        for dim, size in ((0, rows), *((dim, length) for dim in positions)):
            if tensor.dim() > 1 and tensor.shape[dim] == size > 1:
                torch._dynamo.maybe_mark_dynamic(tensor, dim)


def decoder_layers(model: Any) -> list[Any]:
    """The repeated layers: members of the model's module lists whose classes transformers never splits over devices.

    Raises:
        ConfigError: if there are none.
    """
    from torch import nn

    whole = base_model(model)
    names = set(whole._no_split_modules or ())
    lists = [module for module in whole.modules() if isinstance(module, nn.ModuleList)]
    layers = [layer for members in lists for layer in members if type(layer).__name__ in names]
    if not layers:
        what = f"the model type {model.config.model_type} does not declare its layers"
        raise ConfigError(Problem(what, "plugin compile", "run without compile"))
    return layers


def decoder_around(model: Any, layer: Any) -> Any:
    """The innermost model that contains a layer: some models bypass the wrapper of their decoder."""
    from transformers import PreTrainedModel

    containing = [
        part for part in model.modules() if isinstance(part, PreTrainedModel) and layer in set(part.modules())
    ]
    return containing[-1]


def _on_gpu(config: RunConfig) -> bool:
    import torch

    return torch.cuda.is_available() and not config.train.get("use_cpu")
