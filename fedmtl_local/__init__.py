"""A whole federation on one machine: a server and its clients as separate processes, from one configuration."""
