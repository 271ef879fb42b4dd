"""Prediction of the memory and time of a training step, part by part (see docs/planning.md)."""

from atk.plan.rates import Rates
from atk.plan.report import Plan, format_plan, plan
from atk.plan.step import Part, Resources

__all__ = ["Part", "Plan", "Rates", "Resources", "format_plan", "plan"]
