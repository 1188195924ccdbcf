"""One process group: membership, meshes, and the model that runs on them.

`runtime` is the only module of the project that touches the globals of torch.distributed, xfuser
and yunchang.
"""
