"""What things cost: a cycle, a larger ring, a simulation, a training. ``python -m assim_lib bench`` measures it."""

from assim_lib.study.cost.bench import SECTIONS, USUAL, Effort, run_sections
from assim_lib.study.cost.measuring import Costs, cost_path

__all__ = ["SECTIONS", "USUAL", "Costs", "Effort", "cost_path", "run_sections"]
