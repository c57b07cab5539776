"""`lightint evaluate`: free-running rollouts of a world model against rendered truth, peers in the same harness.

The protocol, what is measured and what is not, stands in docs/how-to/evaluate.md.
"""

from .budgets import BUDGETS as BUDGETS
from .budgets import Sweep as Sweep
from .budgets import judge_budgets as judge_budgets
from .job import Plan as Plan
from .job import evaluate as evaluate
from .picture import write_outputs as write_outputs
from .table import print_budgets as print_budgets
from .table import print_table as print_table
