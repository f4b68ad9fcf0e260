"""The configuration of a run."""

from sftkit.config.models import DataSection, ModelSection, RunConfig

__all__ = ["DataSection", "ModelSection", "RunConfig"]
