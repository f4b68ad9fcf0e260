"""The configuration of a run."""

from sftkit.config.models import DataConfig, ModelConfig, RunConfig

__all__ = ["DataConfig", "ModelConfig", "RunConfig"]
