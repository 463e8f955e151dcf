"""How fast the networks run here, against what a user would take instead."""
