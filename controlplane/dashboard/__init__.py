"""The dashboard: one page, no build step, nothing fetched from elsewhere."""

from controlplane.dashboard.serving import page

__all__ = ["page"]
