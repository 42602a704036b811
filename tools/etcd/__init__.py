"""etcd for tools and tests: local members on free ports."""
