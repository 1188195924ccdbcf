"""Generated from proto/ditmesh/v1; do not edit."""
