"""The coordinator: takes jobs from clients and hands them to the group or to its own sampler."""
