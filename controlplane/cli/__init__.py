"""``eepctl``: what operators type. Talks to the admin API and to nothing else."""
