"""The FedMTL server: the model, who takes part in a round, how updates are averaged, and what survives."""
