"""Every place where SGLang 0.5.23 is touched, with the signature it was written against.

SGLang swallows plugin errors (a missing target is a log line), so each seam is verified before and after patching, and
the process ends with one clear line when anything differs.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from worker.engine.errors import SeamError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_FUSED_MOE = "sglang.srt.layers.moe.fused_moe_triton.layer"


@dataclass(frozen=True)
class Seam:
    """One function of SGLang and the parameters it must have.

    Attributes:
        target: Dotted path.
        parameters: Names this build passes or reads, in order; more may follow them.
        kind: A member of SGLang's ``HookType``.
    """

    target: str
    parameters: tuple[str, ...]
    kind: str = "AROUND"

    def check(self) -> None:
        """Resolve the target and compare.

        Raises:
            SeamError: it is gone, or its parameters differ.
        """
        try:
            found = pkgutil.resolve_name(self.target)
        except (ImportError, AttributeError) as error:
            raise SeamError(self.target, f"not found ({error})") from error
        names = tuple(inspect.signature(found).parameters)
        if names[: len(self.parameters)] != self.parameters:
            raise SeamError(self.target, f"takes ({', '.join(names)}), expected ({', '.join(self.parameters)}, …)")


SLOTS = Seam(f"{_FUSED_MOE}.FusedMoE.__init__", ("self", "num_experts", "hidden_size", "intermediate_size", "layer_id"))
LOAD = Seam(
    f"{_FUSED_MOE}.FusedMoE.weight_loader",
    ("self", "param", "loaded_weight", "weight_name", "shard_id", "expert_id"),
)
LOAD_FUSED = Seam(f"{_FUSED_MOE}.FusedMoE.weight_loader_fused", ("self", "param", "loaded_weight", "weight_name"))
ROUNDS = Seam(f"{_FUSED_MOE}.FusedMoE.forward_impl", ("self", "hidden_states", "topk_output"))
COMPUTE = Seam(f"{_FUSED_MOE}.FusedMoE.run_moe_core", ("self", "dispatch_output"))
DISPATCHER = Seam(f"{_FUSED_MOE}.create_moe_dispatcher", ("moe_runner_config", "quant_method"), "REPLACE")
LOCKSTEP = Seam(
    "sglang.srt.managers.scheduler_components.dp_attn.SchedulerDPAttnAdapter.maybe_prepare_mlp_sync_batch",
    ("self", "batch", "need_sync"),
)
FORWARD = Seam("sglang.srt.model_executor.model_runner.ModelRunner.forward", ("self", "forward_batch"))
DECODE_GRAPH = Seam(
    "sglang.srt.model_executor.runner.decode_cuda_graph_runner.DecodeCudaGraphRunner.can_run_graph",
    ("self", "forward_batch"),
)
"""Only where there are graphs."""
READY = Seam("sglang.srt.managers.scheduler.Scheduler.__init__", ("self", "server_args", "port_args"))
TICK = Seam("sglang.srt.managers.scheduler.Scheduler.ingest_requests", ("self",), "BEFORE")
OUTPUT = Seam(
    "sglang.srt.managers.scheduler_components.output_streamer.SchedulerOutputStreamer.stream_output",
    ("self", "reqs", "return_logprob", "skip_req"),
)
SERVE = Seam("sglang.srt.entrypoints.http_server.launch_server", ("server_args",), "BEFORE")

SCHEDULER = (SLOTS, LOAD, LOAD_FUSED, ROUNDS, COMPUTE, DISPATCHER, LOCKSTEP, FORWARD, READY, TICK, OUTPUT)
"""Seams of the process that holds the model."""
MAIN = (SERVE,)
"""Seams of the process that answers HTTP."""


def install(hooks: Iterable[tuple[Seam, Callable[..., Any]]]) -> None:
    """Check every seam, patch it, and check that SGLang really did.

    Raises:
        SeamError: one of them is not as expected.
    """
    registry_module: Any = importlib.import_module("sglang.srt.plugins.hook_registry")
    registry, kinds = registry_module.HookRegistry, registry_module.HookType
    planned = list(hooks)
    for seam, _ in planned:
        seam.check()
    for seam, hook in planned:
        registry.register(seam.target, hook, kinds[seam.kind])
    registry.apply_hooks()
    for seam, _ in planned:
        if seam.target not in registry._patched:  # noqa: SLF001 - the only place that tells
            raise SeamError(seam.target, "could not be patched (SGLang logged the reason above)")
