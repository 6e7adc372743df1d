"""The commands of `fedmtl-server`."""
