"""Models: what their files hold, how they are loaded, and one adapter for each family.

`info`, `latents`, `memory` and `shapes` need neither torch nor diffusers; a coordinator uses them.
`family`, `flux`, `loading`, `model` and `registry` import torch; nodes and the local sampler do.
"""
