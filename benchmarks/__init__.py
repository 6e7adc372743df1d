"""What the wire and the average cost, against what the machine can do: `make bench`."""
