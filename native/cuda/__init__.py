"""The CUDA backend: one rank's end of the elastic dispatch on a GPU, with the API of ``native.Group``.

What differs from the CPU: tensors live on the device, operations are launched on a stream and do not wait, and so a
status
is read when it is asked for, after the stream is done. A whole step (``enqueue_sync``, dispatches, combines) can be
captured
in a graph once: tables, masks, deadlines, links and aborts change behind it.

Imports anywhere; ``available()`` says whether this machine has the module, a driver and a device.
"""

from native.cuda.group import CudaCombined, CudaDispatched, CudaGroup
from native.cuda.module import CudaUnavailableError, OperationError, available
from native.cuda.partition import Partition, link_all
from native.cuda.vocabulary import RECEIVE, SEND, CudaShape, CudaSyncResult, Layout, Row, Wire

__all__ = [
    "RECEIVE",
    "SEND",
    "CudaCombined",
    "CudaDispatched",
    "CudaGroup",
    "CudaShape",
    "CudaSyncResult",
    "CudaUnavailableError",
    "Layout",
    "OperationError",
    "Partition",
    "Row",
    "Wire",
    "available",
    "link_all",
]
