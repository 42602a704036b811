"""The main job: a whole instance on this machine, a fault, and the proof that nobody noticed."""
