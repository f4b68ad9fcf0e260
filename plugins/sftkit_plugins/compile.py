"""torch.compile of the decoder's layers, once for all lengths."""

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
        Field(
            description="layers: the repeated decoder layers, which share what is compiled; model: the whole decoder"
        ),
    ] = "layers"
    backend: Annotated[str, Field(description="inductor, aot_eager, eager, ...: any backend of torch.compile")] = (
        "inductor"
    )
    mode: Annotated[Mode | None, Field(description="of inductor: what it optimises for")] = None
    fullgraph: Annotated[bool, Field(description="an error where a region is not compiled as a whole")] = False

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """Refuses what is compiled twice, an unknown backend, and a machine without a compiler."""
        for name in ("torch_compile", "torch_compile_backend", "torch_compile_mode"):
            if config.train.get(name):
                what = "the model would be compiled twice: the plugin compile is selected too"
                yield Problem(what, f"train.{name}", f"drop train.{name}", ("train", name))
        yield from self._backend_problems()
        attention = config.plugins.get("flash_attn")
        if attention is None:
            return
        if self.regions == "model":
            what = "plugin flash_attn finds the documents of a batch outside of the layers, which is not compiled"
            yield Problem(what, "plugin compile, option regions", "set regions: layers", ("plugins", "compile"))
        elif self.fullgraph and not _on_gpu(config):
            what = "without a GPU, plugin flash_attn attends to one document at a time, which is not compiled"
            yield Problem(what, "plugin compile, option fullgraph", "set fullgraph: false", ("plugins", "compile"))

    def _backend_problems(self) -> Iterator[Problem]:
        where, key = "plugin compile, option ", ("plugins", "compile")
        if self.backend == "inductor":
            compilers = (os.environ.get("CXX"), "g++", "clang++", "cl")
            if not any(shutil.which(name) for name in compilers if name):
                fix = "install g++, or name your compiler in the variable CXX"
                yield Problem("inductor needs a C++ compiler, and there is none", where + "backend", fix, key)
            return
        from torch._dynamo import list_backends

        known = list_backends(exclude_tags=())
        if self.backend not in known:
            fix = nearest(self.backend, known) or f"the backends are {', '.join(known)}"
            yield Problem(f"torch.compile has no backend {self.backend!r}", where + "backend", fix, key)
        if self.mode is not None:
            yield Problem("mode is of the backend inductor only", where + "mode", "drop mode", key)

    @hookimpl
    @contextmanager
    def training_context(self, model: Any, config: RunConfig) -> Iterator[None]:
        """Compiled inside the context; at its exit the model is plain, and what was compiled is given up.

        Raises:
            ConfigError: if the model has no layers that can be told from the rest.
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
            stack.callback(torch._dynamo.reset)  # it holds on to what was compiled, and to the model with it
            for region in regions:
                stack.enter_context(compiled(region, options, calls))
            yield
        if not calls[0]:
            logger.warning("compile: no compiled %s was ever called", kinds)


@contextmanager
def compiled(module: Any, options: dict[str, Any], calls: list[int]) -> Iterator[None]:
    """Compiles a module in place, so that its parameters keep their names.

    Calls with a cache, as generation makes, are not compiled: each layer and each length of a cache would be, anew.

    Args:
        module: whose calls are compiled, but for those with a cache.
        options: of `torch.compile`.
        calls: its first element counts the compiled calls.
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
    """Whether a call is given a cache, or told to make one."""
    from transformers import Cache

    return bool(kwargs.get("use_cache")) or any(isinstance(value, Cache) for value in (*args, *kwargs.values()))


def mark_lengths(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Tells torch.compile that batch size and length vary, so that the first compilation serves the next batches too.

    The first tensor is hidden states ``[B, T, H]`` or token ids ``[B, T]``. Positions are the second dimension of the
    others too, but for masks ``[B, 1, T, T]``. What is marked is a hint: what varies besides is seen by torch.compile
    when it does.
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
    """The repeated layers: the members of the model's lists whose classes transformers never splits over devices.

    Raises:
        ConfigError: if there are none.
    """
    from torch import nn

    whole = base_model(model)
    names = set(whole._no_split_modules or ())
    lists = [module for module in whole.modules() if isinstance(module, nn.ModuleList)]
    layers = [layer for members in lists for layer in members if type(layer).__name__ in names]
    if not layers:
        what = f"the model type {model.config.model_type} does not tell which its layers are"
        raise ConfigError(Problem(what, "plugin compile", "run without compile"))
    return layers


def decoder_around(model: Any, layer: Any) -> Any:
    """The innermost model around a layer: some call their decoder past what wraps it."""
    from transformers import PreTrainedModel

    around = [part for part in model.modules() if isinstance(part, PreTrainedModel) and layer in set(part.modules())]
    return around[-1]


def _on_gpu(config: RunConfig) -> bool:
    import torch

    return torch.cuda.is_available() and not config.train.get("use_cpu")
