"""What the coordinator knows of one node, and its streams to it."""
