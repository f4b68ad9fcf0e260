"""Tensor parallelism: groups of processes share each layer, and different groups train on different rows."""

from __future__ import annotations

from typing import Any, ClassVar

from sftkit.api import ConfigError, ShardedEngine, base_model
from sftkit_plugins.tensor_parallel.plan import plan_problems


class TensorParallelEngine(ShardedEngine):
    """Divides each layer among the processes of a group; several groups share the parts, and average gradients.

    Sources: Shoeybi et al., 2019, Megatron-LM (arXiv 1909.08053); torch.distributed.tensor.parallel. Between groups,
    weights, gradients and optimizer state are sharded by `fully_shard` (Zhao et al., 2023, arXiv 2304.11277).

    Args:
        size: the number of processes of a group.
    """

    name: ClassVar[str] = "tensor_parallel"

    def __init__(self, size: int) -> None:
        super().__init__()
        self.sharing = size

    def place(self, model: Any, arguments: Any) -> Any:
        """The model, divided; see `Engine.place`.

        Raises:
            ConfigError: if the model cannot be divided.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import register_fsdp_forward_method

        from sftkit_plugins.tensor_parallel.shard import settle_gradients, shard

        if problems := list(plan_problems(base_model(model).config, self.sharing)):
            raise ConfigError(problems)
        shape = (self.replicas, self.sharing)
        mesh = init_device_mesh(arguments.device.type, shape, mesh_dim_names=("replicas", "parts"))
        copies = mesh["replicas"].get_group() if self.replicas > 1 else None
        with self.filling(model, arguments.device, copies):
            shard(model, mesh["parts"])
        settle_gradients(model, mesh["parts"])
        if self.replicas > 1:
            self._share_among_groups(model, mesh["replicas"])
            if hasattr(model, "generate"):
                register_fsdp_forward_method(model, "generate")
            self.postpones_reduction(model)
        return model

    def _share_among_groups(self, model: Any, mesh: Any) -> None:
        from torch.distributed.fsdp import fully_shard

        causal = base_model(model)
        decoder = getattr(causal, causal.base_model_prefix)
        for layer in decoder.layers:
            fully_shard(layer, mesh=mesh)
        # The parameters of the model are always those of the optimizer, also after an evaluation.
        fully_shard(model, mesh=mesh, reshard_after_forward=True)
