"""Load with a memory: concurrent streams whose every token, and the moment it came, is kept and checked.

An independent witness: it shares no code with the gateway it judges.
"""

from tools.loadgen.answers import Answer, Ask, Outcome
from tools.loadgen.check import Verdict, compare, teacher_forced
from tools.loadgen.client import Load, Target
from tools.loadgen.timing import Timing, throughput, timing
from tools.loadgen.workload import Workload

__all__ = [
    "Answer",
    "Ask",
    "Load",
    "Outcome",
    "Target",
    "Timing",
    "Verdict",
    "Workload",
    "compare",
    "teacher_forced",
    "throughput",
    "timing",
]
