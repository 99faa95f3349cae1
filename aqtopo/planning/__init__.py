"""Planning: what a run will do and need, before it starts."""

from aqtopo.planning.plan import Plan, make_plan

__all__ = ["Plan", "make_plan"]
