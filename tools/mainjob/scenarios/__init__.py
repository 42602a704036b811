"""What can go wrong, one function each: under checked load, to the end, with every rank back (or as the name says)."""

from tools.mainjob.scenarios import around, losses, operators, sources
from tools.mainjob.scenarios.registry import SCENARIOS, Needs, Scenario, grouped

__all__ = ["SCENARIOS", "Needs", "Scenario", "around", "grouped", "losses", "operators", "sources"]
