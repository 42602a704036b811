"""The control plane: coordinator, planner, admin API, gateway, dashboard, telemetry, command line."""
