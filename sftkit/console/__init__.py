"""Output in the terminal."""

from sftkit.console.display import Display, console
from sftkit.console.tables import show_data, show_metrics, show_table

__all__ = ["Display", "console", "show_data", "show_metrics", "show_table"]
