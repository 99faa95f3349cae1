"""Planning: samples, steps, memory and duration of a run before it starts."""

from aqtopo.planning.plan import Plan, make_plan

__all__ = ["Plan", "make_plan"]
