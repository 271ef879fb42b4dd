"""What a training step will take: memory and time by part, before any run (docs/planning.md)."""

from atk.plan.rates import Rates
from atk.plan.report import Plan, format_plan, plan
from atk.plan.step import Part, Resources

__all__ = ["Part", "Plan", "Rates", "Resources", "format_plan", "plan"]
