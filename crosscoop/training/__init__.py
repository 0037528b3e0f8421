"""How a network learns: the task, its losses, and what happens beside training."""
