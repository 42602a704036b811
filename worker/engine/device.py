"""What differs between the devices that a rank can run on; everything else of the engine is one code for all.

``worker.engine.cpu`` and ``worker.engine.cuda`` each have one class for this protocol. Nothing else asks for a device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import torch

    from native import ControlBlock
    from native.plane import DataPlane
    from worker.engine.membership import Membership, View
    from worker.engine.settings import EngineSettings
    from worker.engine.slots import SlotLayout, SlotMemory


class Dispatcher(Protocol):
    """What stands in for SGLang's dispatcher in one MoE layer."""

    left_out: int
    """(token, expert) pairs that best effort took out of the routing."""

    def attach(self, plane: DataPlane) -> None:
        """Connect to the data plane."""
        ...

    def join(self, membership: Membership) -> None:
        """The rank takes part in an instance from now on."""
        ...


class Device(Protocol):
    """One kind of device."""

    name: str
    """SGLang's name of it."""

    def check_layer(self, layer: Any) -> None:
        """Refuse a MoE layer that slots on this device cannot stand in for (UnsupportedError)."""
        ...

    def slot_dtype(self, layer: Any) -> str:
        """Dtype of a slot's matrices, as ``ExpertShape`` names it (UnsupportedError)."""
        ...

    def slots(self, layout: SlotLayout, name: str) -> SlotMemory:
        """Memory for a rank's slots, zeroed."""
        ...

    def peer_slots(self, layout: SlotLayout, fd: int) -> SlotMemory:
        """A peer's slots, to read; takes the descriptor over."""
        ...

    def place(self, layer: Any, memory: SlotMemory, index: int) -> None:
        """Make a layer's parameters the slots of MoE layer ``index`` (CheckpointError when sizes differ)."""
        ...

    def in_place(self, layer: Any, memory: SlotMemory, index: int) -> bool:
        """Whether they still are, bytes and meaning."""
        ...

    def experts(self, layer: Any) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] | None:
        """Outputs × weights of (rows, slots, weights) for this layer, or None where SGLang's own experts do it."""
        ...

    def dispatcher(self, index: int, *, config: Any) -> Dispatcher:
        """The dispatcher of MoE layer ``index``; ``config`` is SGLang's MoeRunnerConfig."""
        ...

    def plane(
        self, settings: EngineSettings, layers: Sequence[Any], *, experts: int, control: ControlBlock
    ) -> DataPlane:
        """This rank's end of the data plane."""
        ...

    needs_plane_for_warm_up: bool
    """Whether SGLang runs forwards while it starts (memory, graphs), before the rank joins its instance."""

    def empty_batch(self, layer: Any) -> tuple[torch.Tensor, Any]:
        """No tokens: hidden states and SGLang's routing of them."""
        ...

    def prepare_idle(self, run: Callable[[], None]) -> None:
        """``run`` is an idle rank's step; called before the rank joins, when nobody waits for it."""
        ...

    def idle(self, run: Callable[[], None], *, rounds: int) -> None:
        """Take part in a step without a token of our own."""
        ...

    def entered(self, view: View, *, tokens: int | None) -> None:
        """A step begins under ``view`` with ``tokens`` rows of a decode, None for any other step."""
        ...

    def settle(self, plane: DataPlane) -> None:
        """Return when the step has run and nothing is missing.

        Raises:
            StepAbandonedError: some peer's rows are missing, or the step was called off.
        """
        ...

    def seams(self, rounds: Callable[[], int]) -> Iterable[tuple[Any, Callable[..., Any]]]:
        """Further places of SGLang to hook on this device."""
        ...


def device_of(settings: EngineSettings) -> Device:
    """The device that the settings name."""
    if settings.device == "cuda":
        from worker.engine.cuda.device import CudaDevice  # noqa: PLC0415  # needs torch with CUDA

        return CudaDevice(settings)
    from worker.engine.cpu.device import CpuDevice  # noqa: PLC0415  # imports torch and SGLang's model code

    return CpuDevice()
