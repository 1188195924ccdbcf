"""What runs a job's steps, on a node or in the coordinator's local sampler."""
