"""One node: one process, one GPU, one rank of a group."""
