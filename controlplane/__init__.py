"""The control plane: coordinator, planner, admin API, gateway, dashboard, telemetry, command line."""

import os

# We start programs (fork, then exec at once) while gRPC's threads run: its fork handlers would only complain.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
