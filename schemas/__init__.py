"""Every message, record, key and setting that crosses a process boundary, defined once."""
