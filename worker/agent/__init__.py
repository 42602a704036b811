"""The worker agent: one per rank, beside its engine, between it and etcd.

``core`` decides (events in, actions out, no I/O); ``shell`` carries out.
"""
