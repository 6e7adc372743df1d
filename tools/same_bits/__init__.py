"""Whether two revisions compute the same bits: the same small federations in both, checkpoint by checkpoint."""
