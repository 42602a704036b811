"""The native data plane (C++): everything on the path of a token between ranks. The API is typed in ``_native.pyi``."""

from native._native import (
    Combined,
    ControlBlock,
    Dispatched,
    DType,
    Evidence,
    FaultWord,
    Group,
    Phase,
    Shape,
    Status,
    SyncResult,
    SyncRow,
    Table,
    checksum,
    isa,
)

__all__ = [
    "Combined",
    "ControlBlock",
    "DType",
    "Dispatched",
    "Evidence",
    "FaultWord",
    "Group",
    "Phase",
    "Shape",
    "Status",
    "SyncResult",
    "SyncRow",
    "Table",
    "checksum",
    "isa",
]
