"""The tables of the thesis as recipes, and `atk reproduce`, which runs them."""

from atk.recipes.recipe import Recipe
from atk.recipes.tables import TABLES, Row, Table

__all__ = ["TABLES", "Recipe", "Row", "Table"]
