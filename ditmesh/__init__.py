"""ditmesh: diffusion transformers sampled on a group of GPUs, called over gRPC."""

__version__ = "0.1.0"
