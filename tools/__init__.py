"""What a person types, and the programs behind it."""
