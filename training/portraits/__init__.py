"""A tiny Flux that draws pixel-art portraits from a prompt: data, training, export, checks."""
