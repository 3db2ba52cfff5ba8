"""What a run showed: one self-contained HTML page and the table that the command line prints.

Floor 5. Both are made from the run directory alone; nothing here computes a result that a phase has not written.
"""

from medq_ray.report.page import write_report
from medq_ray.report.text import iteration_table

__all__ = ["iteration_table", "write_report"]
