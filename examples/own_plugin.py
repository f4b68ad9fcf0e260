"""Train with a plugin written in this file: dropout on the input embeddings.

python examples/own_plugin.py --model Qwen/Qwen3-0.6B --data train.jsonl --steps 50 --output runs/dropout
"""

import argparse
from contextlib import contextmanager
from typing import Annotated

from sftkit import Field, Pipeline, Plugin, dataclass, hookimpl


@dataclass(frozen=True, kw_only=True)
class EmbeddingDropout(Plugin):
    """Dropout on the input embeddings while training."""

    rate: Annotated[float, Field(ge=0, lt=1, description="share of values set to zero")] = 0.1

    @hookimpl
    @contextmanager
    def inject_noise(self, model):
        from torch.nn import functional

        def drop(module, inputs, output):
            return functional.dropout(output, self.rate, training=model.training)

        handle = model.get_input_embeddings().register_forward_hook(drop)
        try:
            yield
        finally:
            handle.remove()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="Qwen/Qwen3-0.6B", help="directory or hub name")
    parser.add_argument("--data", default="train.jsonl", help="file or hub name")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--output", default="runs/dropout")
    arguments = parser.parse_args()
    Pipeline(
        model=arguments.model,
        data=arguments.data,
        plugins=["packing", EmbeddingDropout(rate=0.2)],
        train={"max_steps": arguments.steps, "learning_rate": 2e-5, "output_dir": arguments.output},
        overwrite=True,
    ).run()
