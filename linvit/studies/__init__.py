"""Studies: arms x seeds of ordinary training runs, on one budget, with a table, a chart and a paired test."""

from linvit.studies.frozen import Frozen
from linvit.studies.report import chart, comparisons, table
from linvit.studies.run import run_study
from linvit.studies.study import Study, read_study

__all__ = ["Frozen", "Study", "chart", "comparisons", "read_study", "run_study", "table"]
