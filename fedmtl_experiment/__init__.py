"""Compare one federation of all tasks with single-task federations, clients alone and centralized training."""
