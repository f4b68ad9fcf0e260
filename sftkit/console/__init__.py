"""Output in the terminal."""

from sftkit.console.display import Display
from sftkit.console.names import metric_name, metric_value
from sftkit.console.output import Output, json_text, output, printing_json, show_json, showing
from sftkit.console.screen import console, end_live, is_live, new_console, stage, working
from sftkit.console.tables import metric_cell, show_data, show_metrics, show_sources, show_table
from sftkit.console.text import wrap

__all__ = [
    "Display",
    "Output",
    "console",
    "end_live",
    "is_live",
    "json_text",
    "metric_cell",
    "metric_name",
    "metric_value",
    "new_console",
    "output",
    "printing_json",
    "show_data",
    "show_json",
    "show_metrics",
    "show_sources",
    "show_table",
    "showing",
    "stage",
    "working",
    "wrap",
]
