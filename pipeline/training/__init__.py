"""Training a base together with its head: which rows, in which batches, what moves, and the loop."""
