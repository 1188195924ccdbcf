"""The gRPC services: they decode, call, and encode."""
