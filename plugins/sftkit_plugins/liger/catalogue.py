"""The model types and kernels of the installed liger-kernel, read from its source because importing it is slow."""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path

from sftkit.api import Problem, nearest

#: The kernels that replace parts of a model, by their names in liger. The losses are not included.
KERNELS = ("rope", "rms_norm", "swiglu", "geglu", "layer_norm", "relu_squared")
TABLE = "MODEL_TYPE_TO_APPLY_LIGER_FN"


@functools.cache
def kernels_by_type(package: Path | None = None) -> dict[str, dict[str, bool]]:
    """The kernels of each model type, and whether liger uses each of them by default.

    Args:
        package: the directory of liger_kernel, by default the installed one.
    """
    if package is None:
        spec = importlib.util.find_spec("liger_kernel")
        if spec is None or not spec.submodule_search_locations:
            return {}
        package = Path(next(iter(spec.submodule_search_locations)))
    tree = ast.parse((package / "transformers" / "monkey_patch.py").read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    table = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and ast.unparse(node.targets[0]) == TABLE
    )
    return {
        str(key.value): _kernels(functions[ast.unparse(value)])
        for key, value in zip(table.keys, table.values, strict=True)
        if isinstance(key, ast.Constant)
    }


def _kernels(function: ast.FunctionDef) -> dict[str, bool]:
    names = [argument.arg for argument in function.args.args]
    defaults = dict(zip(reversed(names), reversed(function.args.defaults), strict=False))
    refused = {
        ast.unparse(node.test)
        for node in function.body
        if isinstance(node, ast.If) and isinstance(node.body[0], ast.Raise)
    }
    found = {}
    for name, value in defaults.items():
        if name in KERNELS and name not in refused and isinstance(value, ast.Constant):
            found[name] = bool(value.value)
    return found


def wanted_kernels(model_type: str, asked: dict[str, bool | None]) -> tuple[list[str], list[Problem]]:
    """The kernels to use for a model type, and the problems with the requested ones.

    Args:
        model_type: the model type in the model's config.json.
        asked: for each kernel, True to use it, False to leave it out, None for liger's default.
    """
    known = kernels_by_type()
    if model_type not in known:
        fix = f"{nearest(model_type, known)} It has {', '.join(sorted(known))}; or run without liger".strip()
        return [], [Problem(f"liger-kernel has no kernels for the model type {model_type!r}", "plugin liger", fix)]
    has = known[model_type]
    problems = [
        Problem(f"liger-kernel has no {name} kernel for {model_type}", f"plugin liger, option {name}", _fix(name, has))
        for name, value in asked.items()
        if value and name not in has
    ]
    return [name for name, default in has.items() if (default if asked[name] is None else asked[name])], problems


def _fix(name: str, has: dict[str, bool]) -> str:
    return f"remove the option; the kernels for this type are {', '.join(has) or 'none'}"
