"""The comparison that FedMTL is for: clients alone, a federation per task, one of all tasks, all data in one place."""
