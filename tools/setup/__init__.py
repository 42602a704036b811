"""Setting up a machine, and saying what is there."""
