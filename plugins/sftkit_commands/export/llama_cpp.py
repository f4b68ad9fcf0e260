"""A GGUF file in llama.cpp, through llama-cpp-python: how it tokenizes, and what it predicts."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.api import Problem, RunError, install_command
from sftkit_commands.export.proof import compare, require_same

if TYPE_CHECKING:
    from torch import Tensor

    from sftkit_commands.export.job import Report
    from sftkit_commands.export.rows import Rows

#: Tolerances by the file's type, as of `sftkit_commands.export.proof`: llama.cpp computes in the type of the weights.
DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "q8_0": "bfloat16"}


def reason_not_compared() -> str:
    """Why nothing is compared in llama.cpp; empty if it is."""
    if importlib.util.find_spec("llama_cpp") is None:
        return f"llama-cpp-python is not installed ({install_command('llama-cpp-python')})"
    return ""


def compare_llama_cpp(path: Path, rows: Rows, tokenizer: Any, reference: list[Tensor], report: Report) -> None:
    """Compare the logits, the next tokens and the tokens of text.

    Args:
        path: the GGUF file.
        rows: rows to compare on.
        tokenizer: of the model.
        reference: logits of the model on the rows.
        report: where to note what was found.

    Raises:
        RunError: if the logits differ by more than the tolerance of the file's type.
    """
    import numpy as np
    import torch
    from llama_cpp import Llama

    width = max(len(row) for row in rows.ids)
    try:
        llama = Llama(str(path), n_ctx=width + 8, n_batch=width + 8, logits_all=True, verbose=False, type_k=0, type_v=0)
    except ValueError as error:
        raise RunError(Problem(f"llama.cpp cannot load the file: {error}", path.name, "please report it")) from error
    found, same = [], 0
    for row in rows.ids:
        llama.reset()
        llama.eval(row)
        found.append(torch.from_numpy(np.array(llama.scores[: len(row)])))
        ends = {tokenizer.bos_token_id, tokenizer.eos_token_id}  # which are put around text, and no part of it
        text = tokenizer.decode(row[row[0] in ends : len(row) - (row[-1] in ends)])
        ours = tokenizer(text, add_special_tokens=False)["input_ids"]
        same += llama.tokenize(text.encode(), add_bos=False, special=True) == ours
    llama.close()
    comparison = compare(reference, found)
    report.proof["llama.cpp"] = comparison
    report.gguf |= {"compared": "yes", "rows_tokenized_alike": same, "rows": len(rows.ids)}
    if same < len(rows.ids):
        report.notes.append(f"llama.cpp splits the text of {len(rows.ids) - same} of {len(rows.ids)} rows otherwise")
    require_same(comparison, DTYPES[report.gguf["type"]], "llama.cpp predicts otherwise", path.name)
