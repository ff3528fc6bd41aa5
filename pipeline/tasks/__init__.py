"""A task in action: its environments and its episodes."""

from pipeline.tasks.seeds import Purpose
from pipeline.tasks.task import RENDER_MODE, Task

__all__ = ["RENDER_MODE", "Purpose", "Task"]
