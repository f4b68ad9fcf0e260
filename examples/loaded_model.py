"""Fine-tune loaded objects: a model, its tokenizer and rows. None of them is changed.

python examples/loaded_model.py --model Qwen/Qwen3-0.6B --steps 50 --output runs/loaded
"""

import argparse

from transformers import AutoModelForCausalLM, AutoTokenizer

from sftkit import Pipeline

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="Qwen/Qwen3-0.6B", help="directory or hub name")
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--output", default="runs/loaded")
arguments = parser.parse_args()

rows = [{"prompt": f"What is {number} plus one? ", "completion": str(number + 1)} for number in range(200)]
result = Pipeline(
    model=AutoModelForCausalLM.from_pretrained(arguments.model),
    tokenizer=AutoTokenizer.from_pretrained(arguments.model),
    data=rows,
    eval=0.1,
    plugins=["peft:r=8"],
    train={"max_steps": arguments.steps, "learning_rate": 1e-3, "output_dir": arguments.output},
    overwrite=True,
).run()
print(f"evaluation loss {result.metrics['eval_loss']:.3f}, adapter in {result.directory}")
