"""Nodes that only tests use, loaded into a real ComfyUI beside the pack.

Stock loaders know Flux in its full size only; these build a tiny one with ComfyUI's own classes,
and conditioning without text encoders.
"""

import importlib

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import comfy.utils
import nodes
import torch


class TinyFlux:
    """An ordinary MODEL, with weights, from a tiny Flux checkpoint."""

    CATEGORY = "test"
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"path": ("STRING", {}), "dtype": (["float32", "bfloat16"],)}}

    def load(self, path, dtype):
        weights = {k: v.float() for k, v in comfy.utils.load_torch_file(path).items()}
        head_dim = weights["double_blocks.0.img_attn.norm.key_norm.scale"].shape[0]
        hidden, token_channels = weights["img_in.weight"].shape
        guided = "guidance_in.in_layer.weight" in weights
        family = comfy.supported_models.Flux if guided else comfy.supported_models.FluxSchnell
        config = family(
            {
                "image_model": "flux",
                "guidance_embed": guided,
                "in_channels": token_channels // 4,
                "out_channels": token_channels // 4,
                "patch_size": 2,
                "depth": _blocks(weights, "double_blocks"),
                "depth_single_blocks": _blocks(weights, "single_blocks"),
                "hidden_size": hidden,
                "num_heads": hidden // head_dim,
                "context_in_dim": weights["txt_in.weight"].shape[1],
                "vec_in_dim": weights["vector_in.in_layer.weight"].shape[1],
                "mlp_ratio": 4.0,
                "qkv_bias": True,
                "theta": 10000,
                "axes_dim": [head_dim // 8, head_dim * 7 // 16, head_dim * 7 // 16],
            }
        )
        config.set_inference_dtype(getattr(torch, dtype), None)
        model = config.get_model(weights, "", device="cpu")
        model.load_model_weights(weights, "")
        model.diffusion_model.to(getattr(torch, dtype))
        patcher = comfy.model_patcher.ModelPatcher(
            model,
            load_device=comfy.model_management.get_torch_device(),
            offload_device=torch.device("cpu"),
        )
        return (patcher,)


class Loopback:
    """The twin of a MODEL whose remote transformer is that MODEL's own, in this process: what
    differs from the MODEL's pictures, the pack has changed and no other machine.
    """

    CATEGORY = "test"
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL", {})}}

    def load(self, model):
        pack = nodes.NODE_CLASS_MAPPINGS["XDiTRemoteModel"].__module__.rpartition(".")[0]
        dispatcher = importlib.import_module(f"{pack}.dispatcher").Dispatcher()
        remote_model = importlib.import_module(f"{pack}.remote_model")
        twin = remote_model.make_twin(model, dispatcher, "loopback")
        transformer = remote_model.remote_transformer(twin)
        transformer._stream = _Stream(model.model.diffusion_model)
        return (twin,)


class _Stream:
    """Answers as a cluster does: from what came over the wire, in a thread of another's."""

    executor, fallback_reason = "group", ""

    def __init__(self, transformer):
        self._transformer = transformer

    def predict(self, x, timestep, conditioning, *, timeout_s):
        batch = x.shape[0]
        text, pooled = (
            torch.from_numpy(conditioning.wire[name].numpy().copy()).expand(batch, *rest)
            for name, rest in (("text", (-1, -1)), ("pooled", (-1,)))
        )
        with torch.inference_mode():
            output = self._transformer(
                x,
                torch.tensor(timestep),
                context=text,
                y=pooled,
                guidance=torch.tensor(conditioning.guidance),
            )
        return output.numpy()

    def close(self):
        pass


class RandomConditioning:
    """A CONDITIONING drawn from a seed."""

    CATEGORY = "test"
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "seed": ("INT", {"default": 0}),
                "tokens": ("INT", {"default": 16}),
                "width": ("INT", {"default": 64}),
                "pooled": ("INT", {"default": 32}),
                "guidance": ("FLOAT", {"default": 3.5}),
            }
        }

    def make(self, seed, tokens, width, pooled, guidance):
        generator = torch.Generator().manual_seed(seed)
        options = {
            "pooled_output": torch.randn(1, pooled, generator=generator),
            "guidance": guidance,
        }
        return ([[torch.randn(1, tokens, width, generator=generator), options]],)


class RandomLatent:
    """A LATENT drawn from a seed."""

    CATEGORY = "test"
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "seed": ("INT", {"default": 0}),
                "batch": ("INT", {"default": 1}),
                "height": ("INT", {"default": 16}),
                "width": ("INT", {"default": 16}),
            },
            "optional": {"channels": ("INT", {"default": 16})},
        }

    def make(self, seed, batch, height, width, channels=16):
        generator = torch.Generator().manual_seed(seed)
        return ({"samples": torch.randn(batch, channels, height, width, generator=generator)},)


def _blocks(weights, kind):
    return len({name.split(".")[1] for name in weights if name.startswith(f"{kind}.")})


NODE_CLASS_MAPPINGS = {
    "TestTinyFlux": TinyFlux,
    "TestLoopback": Loopback,
    "TestRandomConditioning": RandomConditioning,
    "TestRandomLatent": RandomLatent,
}
