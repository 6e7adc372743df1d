"""Definitions shared by server and clients: tasks, model, tensor layout, configuration, errors."""
