"""A small case for compute-sanitizer: one rank, its own only peer, so nothing waits for a launch still to come."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from native.cuda import Layout, Wire
from tools.virtual_ranks import OK, Rig, Sizes, relative_error

for wire in Wire:
    for layout in Layout:
        sizes = Sizes(ranks=1, tokens=33, hidden=640, topk=3, experts=8, layers=2, wire=wire, layout=layout)
        with Rig(sizes=sizes, blocks=6, timeout_s=60.0, hard_timeout_s=120.0) as world:
            world.enter_epoch(1, [0])
            factors, batch = world.factors(0), world.batch()
            world.synchronize()  # inputs come from torch's stream, for which the ranks' streams do not wait
            world.groups[0].enqueue_sync(stream=world.streams[0])
            for layer in range(2):
                world.run_round(0, layer, batch, factors)
                world.synchronize()
                assert world.groups[0].status == OK
                assert relative_error(batch.out, world.reference(batch)) < 0.06
print("small case: held")  # noqa: T201  # what the caller looks for
