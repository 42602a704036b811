"""Deterministic simulation: an in-memory etcd, virtual time, and the real control plane over both."""
