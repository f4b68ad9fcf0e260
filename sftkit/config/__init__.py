"""The configuration of a run."""

from sftkit.config.models import DataSection, EvaluateSection, ModelSection, RunConfig

__all__ = ["DataSection", "EvaluateSection", "ModelSection", "RunConfig"]
