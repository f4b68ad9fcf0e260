"""The configuration of a run."""

from sftkit.config.models import DataSection, EvaluateSection, ModelSection, RunConfig, was_loaded

__all__ = ["DataSection", "EvaluateSection", "ModelSection", "RunConfig", "was_loaded"]
