"""The HTML page of a report: self-contained, and forbidden to load anything."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sftkit.api import REPORT_MARK, TOKEN_KINDS, ConfigError, Problem, metric_name, metric_value, write_text
from sftkit_commands.report import facts
from sftkit_commands.report.charts import charts_of
from sftkit_commands.report.reading import Run
from sftkit_commands.report.series import DRAWN, Chart

HERE = Path(__file__).parent
TABLE_ROWS = 100  # of the table of a chart


def write_report(path: Path, runs: Sequence[Run], refresh: int = 0) -> None:
    """Write the report of some runs; at any moment the file on disk is a complete one.

    Args:
        path: the file.
        runs: the runs.
        refresh: seconds after which a browser reads the page again while a run goes on; 0 for never.

    Raises:
        ConfigError: if the file cannot be written.
    """
    text = render(runs, refresh)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        what = f"the report cannot be written: {error.strerror or error}"
        raise ConfigError(Problem(what, str(path), "name another file with --output")) from error


def render(runs: Sequence[Run], refresh: int = 0) -> str:
    """The page; arguments as of `write_report`."""
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    loader = FileSystemLoader(HERE)
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": facts.number, "yaml": _yaml, "duration": facts.duration, "breaks": _breaks}
    environment.filters |= {"metric_name": metric_name, "metric_value": _metric_value}
    charts = charts_of(runs)
    script = f"{_source('uplot/uPlot.iife.min.js')}\n{_source('report.js')}"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    names = [run.name for run in runs]
    return environment.get_template("report.html.jinja").render(
        title=names[0] if len(runs) == 1 else f"{len(runs)} runs compared",
        mark=Markup(REPORT_MARK),
        runs=runs,
        charts=charts,
        payload=Markup(_json([_data(chart) for chart in charts])),
        script=Markup(script),
        digest=digest,
        styles=Markup(f"{_source('uplot/uPlot.min.css')}\n{_source('report.css')}"),
        facts=facts,
        kinds=TOKEN_KINDS,
        drawn=DRAWN,
        table_rows=TABLE_ROWS,
        refresh=refresh if any(run.status == "running" for run in runs) else 0,
    )


def _source(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8").strip()


def _data(chart: Chart) -> dict[str, Any]:
    """What the script needs to draw a chart."""
    steps, columns = chart.columns
    lines = [{"label": one.label, "style": one.style, "colour": one.colour} for one in chart.series]
    return {
        "name": chart.name,
        "unit": chart.unit,
        "steps": steps,
        "values": columns,
        "series": lines,
        "resumed": chart.resumed,
    }


def _json(value: Any) -> str:
    """JSON that can stand in a script element: no text in it ends the element."""
    return (
        json.dumps(value, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    )


def _metric_value(value: Any, name: str) -> str:
    """The value of a metric, as `sftkit run` shows it; empty if there is none."""
    return "" if value is None else metric_value(name, value)


def _breaks(name: str) -> Any:
    """A name that may be broken after its dots and underscores."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([._])", r"\1<wbr>", str(escape(name))))


def _yaml(value: Any) -> str:
    import yaml

    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))
