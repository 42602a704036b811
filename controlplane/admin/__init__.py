"""The admin API: what operators and their programs ask of the instance, and are told of it."""

from controlplane.admin.app import Route, make_app, routes
from controlplane.admin.archive import EtcdArchive
from controlplane.admin.auth import Authentication, Role, TokenFile
from controlplane.admin.ports import Archive, Change, Predictor, Reader, Snapshot

__all__ = [
    "Archive",
    "Authentication",
    "Change",
    "EtcdArchive",
    "Predictor",
    "Reader",
    "Role",
    "Route",
    "Snapshot",
    "TokenFile",
    "make_app",
    "routes",
]
