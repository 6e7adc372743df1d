"""`fedmtl-local new`: the files of a new federation, from the rows of its tasks."""
