"""Members that do the same work at once: a mesh of the group, or the local sampler alone."""
