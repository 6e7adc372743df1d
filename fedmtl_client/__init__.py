"""The FedMTL client: takes a slice, trains it on data that stays where it lies, and sends the update back."""
