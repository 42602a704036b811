"""What ``tools/bench gpu`` measures, one idea to a module."""
