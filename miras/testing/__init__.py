"""Shipped tests: hypothesis strategies over the product of the registries, laws, tolerances, and `check(component)`."""

from miras.testing.check import LAWS, Report, Result, apply, check
from miras.testing.laws import Inapplicable
from miras.testing.problems import Problem, problem
from miras.testing.rounding import RoundedProducts
from miras.testing.strategies import components, problems, specs
from miras.testing.tolerances import TOLERANCE, relative

__all__ = [
    "LAWS",
    "TOLERANCE",
    "Inapplicable",
    "Problem",
    "Report",
    "Result",
    "RoundedProducts",
    "apply",
    "check",
    "components",
    "problem",
    "problems",
    "relative",
    "specs",
]
