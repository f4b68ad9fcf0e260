"""Checkpoints that survive a crash: written beside, synced, renamed, and verified before they are used."""

from sftkit.checkpoints.choice import Choice, newest
from sftkit.checkpoints.manifest import MANIFEST, read, write

__all__ = ["MANIFEST", "Choice", "newest", "read", "write"]
