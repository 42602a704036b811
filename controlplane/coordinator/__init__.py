"""The coordinator: a pure core that decides membership, and the shell that runs it on etcd."""
