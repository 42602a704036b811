"""A step without a token of our own, as a graph: an idle rank must not be what its peers wait for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable


class IdleStep:
    """Captured once, before the rank joins: nobody waits for a kernel that is compiled or captured then."""

    def __init__(self) -> None:
        self._graph: torch.cuda.CUDAGraph | None = None
        self.captures = 0

    def capture(self, run: Callable[[], None]) -> None:
        """Run once to compile what has to be compiled, then capture. No epoch is in force: kernels wait for nobody."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.inference_mode():
            run()
            stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                run()
        self._graph = graph
        self.captures += 1

    def __call__(self, run: Callable[[], None], *, rounds: int) -> None:
        """Replay; a step of several rounds has no graph."""
        if self._graph is not None and rounds == 1:
            self._graph.replay()
        else:
            with torch.inference_mode():
                run()
