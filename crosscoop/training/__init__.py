"""Training: the task, its objectives and losses, and the callbacks."""
