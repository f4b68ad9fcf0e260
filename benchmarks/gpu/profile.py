"""Where the time of a step goes: kernels by time, and the shares of GEMM, attention, loss, optimizer, the rest, idle.

A trace of torch.profiler lists kernels, the calls that launched them, and the operators and `record_function` ranges
around those calls. Each kernel is put in the first class whose rule fits its name or anything around its launch:
`RULES`. On a CPU there are no kernels, and operators stand in for them, each with the time that is not its callees'.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

TOP = 20
#: Classes, first match wins: a pattern for what is around the launch, and one for the kernel's own name.
RULES: list[tuple[str, str, str]] = [
    ("optimizer", r"^Optimizer\.|_fused_adam|_foreach_|clip_grad|linalg_vector_norm", r""),
    ("loss", r"_Summed|ChunkedLogProb|FusedLinearCrossEntropy|nll_loss|log_softmax|cross_entropy", r"cross_entropy"),
    (
        "attention",
        r"scaled_dot_product|flash_attention|efficient_attention|cudnn_attention|varlen_att|flex_attention",
        r"flash_(fwd|bwd)|fmha|flex_attention|flashattn|triton_tem",
    ),
    ("GEMM", r"^aten::(mm|addmm|bmm|baddbmm|linear|matmul|_addmm_activation)$", r"gemm|nvjet|cutlass|xmma|splitk"),
]
CLASSES = [*(name for name, _, _ in RULES), "other", "idle"]
#: Categories of a trace: work of the device, calls that launch it, and what a program's own thread is doing.
DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
LAUNCH = {"cuda_runtime", "cuda_driver"}
HOST = {"cpu_op", "user_annotation"}


class Work(NamedTuple):
    """One kernel, or the own time of one operator on a CPU.

    Attributes:
        name: of the kernel.
        start: in microseconds.
        length: in microseconds.
        around: operators and ranges around the launch, the innermost last.
    """

    name: str
    start: float
    length: float
    around: tuple[str, ...]


def profiler(device: str) -> Any:
    """A profiler that is started and stopped by hand."""
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    return profile(activities=kinds)


def summary(made: Any, path: Path, steps: int, step_seconds: float, device: str) -> dict[str, Any]:
    """Top kernels and shares.

    Args:
        made: the stopped profiler.
        path: for its trace.
        steps: steps in the trace.
        step_seconds: of a step without the profiler, which slows the host down: idle is the rest of this.
        device: ``cuda`` or ``cpu``.
    """
    made.export_chrome_trace(str(path))
    events = [
        event
        for event in json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
        if event.get("ph") == "X" and "dur" in event
    ]
    path.unlink()
    return shares(list(work_of(events, device)), busy_seconds(events, device) / steps, steps, step_seconds)


def shares(work: list[Work], busy: float, steps: int, step_seconds: float) -> dict[str, Any]:
    """As `summary`, of the work itself; ``busy`` is the time of a step, in seconds, in which the device works."""
    if not work:
        raise RuntimeError("the trace holds no work of the device: the profiler cannot see its kernels")
    by_class: Counter[str] = Counter()
    by_name: dict[str, list[Work]] = defaultdict(list)
    for item in work:
        by_class[class_of(item)] += item.length
        by_name[item.name].append(item)
    whole = max(step_seconds, busy)
    overlap = busy / (sum(by_class.values()) / steps / 1e6)  # kernels of several streams may run at once
    parts = {name: by_class[name] / steps / 1e6 * overlap / whole for name in CLASSES[:-1]}
    parts["idle"] = 1 - busy / whole
    ordered = sorted(by_name.values(), key=lambda items: -sum(item.length for item in items))
    return {
        "step_ms": round(step_seconds * 1e3, 3),
        "busy_ms": round(busy * 1e3, 3),
        "steps": steps,
        "shares": {name: round(value, 4) for name, value in parts.items()},
        "kernels": [_row(items, steps, whole) for items in ordered[:TOP]],
    }


def _row(items: list[Work], steps: int, whole: float) -> dict[str, Any]:
    total = sum(item.length for item in items) / steps
    return {
        "name": _short(items[0].name),
        "class": Counter(map(class_of, items)).most_common(1)[0][0],
        "launched_by": Counter(item.around[-1] if item.around else "" for item in items).most_common(1)[0][0],
        "ms": round(total / 1e3, 4),
        "calls": round(len(items) / steps, 1),
        "share": round(total / 1e6 / whole, 4),
    }


def _short(name: str) -> str:
    """A kernel's name without its return type, template arguments and parameters."""
    bare = re.sub(r"^void ", "", name)
    while (shorter := re.sub(r"<[^<>]*>", "", bare)) != bare:
        bare = shorter
    return re.sub(r"\(.*", "", bare).strip()[:100] or name[:100]


def class_of(item: Work) -> str:
    """The class of a kernel, by `RULES`."""
    for name, around, own in RULES:
        if any(re.search(around, text) for text in item.around) or (own and re.search(own, item.name, re.IGNORECASE)):
            return name
    return "other"


def busy_seconds(events: list[dict[str, Any]], device: str) -> float:
    """The time in which a kernel runs; on a CPU, in which an operator does."""
    kinds = DEVICE if device == "cuda" else {"cpu_op"}
    spans = [(float(event["ts"]), float(event["dur"])) for event in events if event.get("cat") in kinds]
    return covered((start, start + length) for start, length in spans) / 1e6


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of spans."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def work_of(events: list[dict[str, Any]], device: str) -> Iterator[Work]:
    """The work in a trace of torch.profiler, each piece with what is around its launch."""
    host = [event for event in events if event.get("cat") in HOST]
    if device == "cpu":
        yield from _own_times(host)
        return
    kernels = [event for event in events if event.get("cat") in DEVICE]
    wanted = {_correlation(event) for event in kernels} - {None}
    launches = [event for event in events if event.get("cat") in LAUNCH and _correlation(event) in wanted]
    around = _surroundings(host, launches)
    operators = {event["args"]["External id"]: event for event in host if "External id" in event.get("args", {})}
    for event in kernels:
        names = around.get(_correlation(event))
        if names is None:  # its launch was not recorded, but perhaps the operator was
            operator = operators.get(event.get("args", {}).get("External id"))
            names = (operator["name"],) if operator else ()
        yield Work(event["name"], float(event["ts"]), float(event["dur"]), names)


def _correlation(event: dict[str, Any]) -> Any:
    return event.get("args", {}).get("correlation")


def _surroundings(host: list[dict[str, Any]], launches: list[dict[str, Any]]) -> dict[Any, tuple[str, ...]]:
    """By correlation, the names of what its thread was in when it launched."""
    marks = [(event["tid"], float(event["ts"]), -float(event["dur"]), 0, event) for event in host]
    marks += [(event["tid"], float(event["ts"]), 0.0, 1, event) for event in launches]
    found: dict[Any, tuple[str, ...]] = {}
    for _, stack, event, is_launch in _nested(marks):
        if is_launch:
            found[_correlation(event)] = tuple(outer["name"] for outer in stack)
    return found


def _own_times(host: list[dict[str, Any]]) -> Iterator[Work]:
    """Each operator's time without that of the operators that it calls."""
    marks = [(event["tid"], float(event["ts"]), -float(event["dur"]), 0, event) for event in host]
    own = {id(event): float(event["dur"]) for event in host}
    seen = []
    for _, stack, event, _ in _nested(marks):
        if stack:
            own[id(stack[-1])] -= float(event["dur"])
        seen.append((event, tuple(outer["name"] for outer in stack)))
    for event, names in seen:
        if event["cat"] == "cpu_op" and (length := own[id(event)]) > 0:
            yield Work(event["name"], float(event["ts"]), length, (*names, event["name"]))


def _nested(marks: list[Any]) -> Iterator[tuple[Any, list[dict[str, Any]], dict[str, Any], int]]:
    """Each event with the events of its thread that it lies in, from the outermost to the innermost."""
    stack: list[dict[str, Any]] = []
    thread = None
    for tid, start, _, is_launch, event in sorted(marks, key=lambda mark: (str(mark[0]), *mark[1:4])):
        if tid != thread:
            stack, thread = [], tid
        while stack and float(stack[-1]["ts"]) + float(stack[-1]["dur"]) <= start:
            stack.pop()
        yield tid, stack, event, is_launch
        if not is_launch:
            stack.append(event)
