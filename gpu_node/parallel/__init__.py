"""One process group: membership, meshes, and the model that runs on them.

This package is the only place of the project that touches the globals of torch.distributed, xfuser
and yunchang. `runtime` opens it: `prepare` a process, `join` an epoch; `model` runs transformers.
"""
