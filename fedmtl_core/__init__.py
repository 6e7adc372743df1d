"""What server and clients must agree on beyond the contract: tasks, model parts, tensor layout, config, errors."""
