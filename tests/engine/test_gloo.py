"""In a process of its own: the change is for the life of a process."""

import subprocess
import sys

_GROUPS = """
import collections, os, torch
import torch.distributed as dist
from worker.engine.gloo import share_loop
if {shared}:
    share_loop()
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
groups = [dist.new_group([0], backend="gloo") for _ in range(5)]
for group in groups:
    ones, told = torch.ones(3), [None]
    dist.all_reduce(ones, group=group)
    dist.all_gather_object(told, "here", group=group)
    assert ones.tolist() == [1, 1, 1] and told == ["here"]
names = [open(f"/proc/self/task/{{task}}/comm").read().strip() for task in os.listdir("/proc/self/task")]
print(names.count("gloo_tcp_loop"))
"""


def _loops(*, shared: bool) -> int:
    line = [sys.executable, "-c", _GROUPS.format(shared=shared)]
    return int(subprocess.run(line, capture_output=True, check=True, timeout=120).stdout)


def test_all_groups_share_one_loop_and_work_as_before():
    assert _loops(shared=False) == 6
    assert _loops(shared=True) == 1
