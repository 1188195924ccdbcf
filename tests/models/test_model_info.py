"""What `inspect` and `scan` tell about models, sound and damaged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from ditmesh.errors import DamagedModel, UnknownModel
from ditmesh.models.describe import describe
from ditmesh.models.info import inspect, scan
from ditmesh.models.latents import FLUX
from ditmesh.models.loading import load
from tests.models.tiny_flux import CONFIG, SINGLE_FILE

Rewrite = Callable[..., Path]


def test_single_file_dimensions_are_read_from_the_weights() -> None:
    """A ComfyUI/BFL file tells its dimensions by its shapes; nothing is assumed."""
    info = inspect(SINGLE_FILE)
    assert (info.name, info.family, info.layout) == ("tiny_flux_bfl", "flux", "single_file")
    assert (info.latent_channels, info.patch_size) == (16, 2)
    assert (info.num_heads, info.head_dim) == (8, 32)
    assert (info.text_dim, info.pooled_dim) == (64, 32)
    assert info.guidance_embeds
    assert (info.config.num_layers, info.config.num_single_layers) == (1, 1)
    assert info.config.axes_dims == (4, 14, 14)
    assert info.dtype == "bfloat16"
    assert info.weight_bytes == 2 * info.num_parameters
    assert info.files == (SINGLE_FILE,)
    assert info.latent_format == FLUX


def test_pipeline_folder(pipeline_folder: Path, diffusers_model: FluxTransformer2DModel) -> None:
    """A diffusers pipeline is described from its transformer's config and weights."""
    info = inspect(pipeline_folder)
    assert (info.name, info.layout, info.dtype) == ("portraits", "diffusers", "float32")
    assert info.num_parameters == sum(p.numel() for p in diffusers_model.parameters())
    assert info.config.axes_dims == CONFIG["axes_dims_rope"]
    assert info.num_heads == CONFIG["num_attention_heads"]


def test_bare_transformer_folder_is_the_same_model(pipeline_folder: Path) -> None:
    """The transformer's own folder gives the same weights, and so the same fingerprint."""
    whole, bare = inspect(pipeline_folder), inspect(pipeline_folder / "transformer", "other")
    assert bare.name == "other"
    assert bare.fingerprint == whole.fingerprint


def test_sharded_weights(tmp_path: Path, diffusers_model: FluxTransformer2DModel) -> None:
    """Weights in several files with an index are one model, equal to the unsharded one."""
    diffusers_model.save_pretrained(tmp_path / "sharded", max_shard_size="200KB")
    diffusers_model.save_pretrained(tmp_path / "whole")
    sharded, whole = inspect(tmp_path / "sharded"), inspect(tmp_path / "whole")
    assert len(sharded.files) > 1
    assert sharded.fingerprint == whole.fingerprint


def test_prefix_and_other_parts_of_a_checkpoint(rewrite: Rewrite) -> None:
    """`model.diffusion_model.` names are the transformer; a VAE beside it is left alone."""

    def whole_checkpoint(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[f"model.diffusion_model.{name}"] = tensors.pop(name)
        tensors["vae.decoder.conv_in.weight"] = torch.zeros(4)

    info, plain = inspect(rewrite(whole_checkpoint)), inspect(SINGLE_FILE)
    assert info.config == plain.config
    assert info.num_parameters == plain.num_parameters


def test_fingerprint_follows_the_weights_not_the_path(tmp_path: Path, rewrite: Rewrite) -> None:
    """Copies share a fingerprint, also in a wider element type; another value changes it."""
    copy = tmp_path / "copy.safetensors"
    shutil.copy(SINGLE_FILE, copy)
    original = inspect(SINGLE_FILE).fingerprint
    assert inspect(copy).fingerprint == original

    def last_value(tensors: dict[str, Tensor]) -> None:
        tensors["img_in.weight"][-1, -1] += 1

    def widened(tensors: dict[str, Tensor]) -> None:
        for name in tensors:
            tensors[name] = tensors[name].float()

    assert inspect(rewrite(last_value)).fingerprint != original
    assert inspect(rewrite(widened)).fingerprint == original


def test_fingerprint_is_the_same_in_both_layouts(tmp_path: Path) -> None:
    """A single file and the diffusers folder made of it are told to be the same weights."""
    single = inspect(SINGLE_FILE)
    module = load(
        single, device="cpu", dtype=torch.bfloat16, transformer_class=FluxTransformer2DModel
    )
    module.save_pretrained(tmp_path / "folder")
    folder = inspect(tmp_path / "folder")
    assert folder.layout != single.layout
    assert folder.fingerprint == single.fingerprint


def test_a_file_without_embedded_guidance_has_an_unshifted_schedule(rewrite: Rewrite) -> None:
    """It is taken for schnell, as ComfyUI takes it; with guidance the family's shift holds."""

    def without_guidance(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("guidance_in.")]:
            del tensors[name]

    assert inspect(SINGLE_FILE).default_shift is None
    assert describe(inspect(SINGLE_FILE)).default_shift == 1.15
    assert describe(inspect(rewrite(without_guidance))).default_shift == 0.0


def remove(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.__delitem__(name)


def add(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({name: torch.zeros(1)})


def resize(name: str, *shape: int) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (remove("img_in.weight"), "not a Flux.1"),
        (remove("single_blocks.0.linear2.bias"), "'single_blocks.0.linear2.bias'"),
        (remove("guidance_in.in_layer.weight"), "unexpected tensors, e.g. 'guidance_in"),
        (remove("final_layer.linear.weight"), "'final_layer.linear.weight' is missing"),
        (add("double_blocks.0.img_attn.qkv.scale_weight"), "scaled fp8"),
        (add("double_blocks.7.img_mod.lin.bias"), "missing"),
        (resize("single_blocks.0.linear1.weight", 1024, 256), r"\[1024, 256\], not \[1792, 256\]"),
        (resize("img_in.weight", 256, 384), "extra image channels"),
        (resize("double_blocks.0.img_attn.norm.query_norm.scale", 48), "multiple of 32"),
        (resize("img_in.weight", 256), "malformed"),
        (
            lambda tensors: tensors.update({"img_in.bias": torch.zeros(256, dtype=torch.int32)}),
            "not floats",
        ),
    ],
)
def test_single_files_that_are_no_sound_flux(
    rewrite: Rewrite, change: Callable[[dict[str, Tensor]], None], words: str
) -> None:
    """Missing, surplus and misshapen tensors are found from the header and named."""
    path = rewrite(change)
    with pytest.raises(DamagedModel, match=words) as caught:
        inspect(path)
    assert str(path) in caught.value.message


def test_files_that_are_no_safetensors(tmp_path: Path) -> None:
    """Pickles are refused by name without being opened, and so is what is not there."""
    for name, words in (
        ("model.ckpt", "pickle"),
        ("model.gguf", "only .safetensors"),
        ("absent.safetensors", "no such file"),
    ):
        if not name.startswith("absent"):
            (tmp_path / name).write_bytes(b"anything")
        with pytest.raises(DamagedModel, match=words):
            inspect(tmp_path / name)


def test_a_truncated_single_file(tmp_path: Path) -> None:
    """A download that stopped is found by size, before any weight is read."""
    path = tmp_path / "cut.safetensors"
    path.write_bytes(SINGLE_FILE.read_bytes()[:-1000])
    with pytest.raises(DamagedModel, match="truncated"):
        inspect(path)


def test_folders_that_are_damaged(pipeline_folder: Path) -> None:
    """Each thing that can be wrong with a folder is named, with the file."""
    folder = pipeline_folder / "transformer"
    weights = folder / "diffusion_pytorch_model.safetensors"
    config = folder / "config.json"
    sound = json.loads(config.read_text())

    def configured(**changes: object) -> None:
        config.write_text(json.dumps({**sound, **changes}))

    for changes, words in (
        ({"_class_name": "SD3Transformer2DModel"}, "SD3Transformer2DModel, not"),
        ({"num_layers": "many"}, "not a number"),
        ({"num_layers": 3}, "missing, e.g. 'transformer_blocks"),
        ({"out_channels": 32}, "extra image channels"),
        ({"axes_dims_rope": [4, 6, 8]}, "axes_dims_rope"),
        ({"patch_size": 2}, "patch_size"),
    ):
        configured(**changes)
        with pytest.raises(DamagedModel, match=words):
            inspect(pipeline_folder)
    config.write_text("{")
    with pytest.raises(DamagedModel, match=r"config.json: not valid JSON"):
        inspect(pipeline_folder)
    configured()
    shutil.copy(weights, folder / "second.safetensors")
    with pytest.raises(DamagedModel, match="several sets of weights"):
        inspect(pipeline_folder)
    (folder / "second.safetensors").unlink()
    weights.rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(DamagedModel, match=r"diffusion_pytorch_model.bin is a pickle"):
        inspect(pipeline_folder)


def test_an_index_cannot_name_files_elsewhere(pipeline_folder: Path) -> None:
    """A weight map that leads out of the folder is refused."""
    folder = pipeline_folder / "transformer"
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../../../../etc/weights.safetensors"}}))
    with pytest.raises(DamagedModel, match="not a plain file name"):
        inspect(pipeline_folder)


def test_a_folder_brings_its_own_latent_format(pipeline_folder: Path) -> None:
    """Scale, shift and preview colours come from the folder's files where it has them."""
    (pipeline_folder / "vae").mkdir()
    (pipeline_folder / "vae" / "config.json").write_text(
        '{"scaling_factor": 256.0, "shift_factor": 0.0}'
    )
    found = inspect(pipeline_folder).latent_format
    assert (found.scale, found.shift) == (256.0, 0.0)
    assert found.rgb_factors == FLUX.rgb_factors
    preview = {"rgb_factors": [[1.0, 0.0, 0.0]] * 16, "rgb_bias": [0.5, 0.0, -0.5]}
    (pipeline_folder / "latent_preview.json").write_text(json.dumps(preview))
    found = inspect(pipeline_folder).latent_format
    assert found.rgb_factors == ((1.0, 0.0, 0.0),) * 16
    assert found.rgb_bias == (0.5, 0.0, -0.5)
    preview["rgb_factors"].pop()
    (pipeline_folder / "latent_preview.json").write_text(json.dumps(preview))
    with pytest.raises(DamagedModel, match=r"\[15, 3\]"):
        inspect(pipeline_folder)


def test_scan_finds_every_model_and_hides_none(pipeline_folder: Path) -> None:
    """Folders and files at any depth are found; damaged ones are listed with their reason."""
    root = pipeline_folder.parent
    (root / "flux").mkdir()
    shutil.copy(SINGLE_FILE, root / "flux" / "tiny.safetensors")
    (root / "broken.safetensors").write_bytes(b"")
    (root / "old.ckpt").write_bytes(b"")
    (root / "notes.txt").write_text("not a model")
    (root / ".cache").mkdir()
    shutil.copy(SINGLE_FILE, root / ".cache" / "hidden.safetensors")
    (root / "loop").symlink_to(root)
    catalogue = scan(root)
    assert set(catalogue.models) == {"portraits", "flux/tiny"}
    assert set(catalogue.problems) == {"broken", "old.ckpt"}
    assert catalogue.get("flux/tiny").name == "flux/tiny"


def test_two_models_of_one_name(tmp_path: Path, diffusers_model: FluxTransformer2DModel) -> None:
    """The second is a problem that names both; the first is served."""
    diffusers_model.save_pretrained(tmp_path / "tiny")
    shutil.copy(SINGLE_FILE, tmp_path / "tiny.safetensors")
    catalogue = scan(tmp_path)
    assert catalogue.models["tiny"].layout == "diffusers"
    assert "same name" in catalogue.problems["tiny.safetensors"].message


def test_names_never_become_paths(pipeline_folder: Path) -> None:
    """A name that points at a real model outside the folder is simply unknown."""
    catalogue = scan(pipeline_folder.parent)
    for name in (str(SINGLE_FILE), "../models/portraits", "portraits/transformer", "", "."):
        with pytest.raises(UnknownModel, match="portraits"):
            catalogue.get(name)


def test_a_damaged_model_is_told_apart_from_an_unknown_one(tmp_path: Path) -> None:
    """Asking for a damaged model gives its reason; there being no folder is an error."""
    (tmp_path / "broken.safetensors").write_bytes(b"")
    with pytest.raises(DamagedModel, match="too short"):
        scan(tmp_path).get("broken")
    with pytest.raises(DamagedModel, match="no such models folder"):
        scan(tmp_path / "absent")


def test_inspecting_needs_no_torch() -> None:
    """A coordinator can list models without importing torch or diffusers."""
    program = (
        "import sys; from ditmesh.models.info import scan; from ditmesh.models import memory; "
        f"assert scan({str(SINGLE_FILE.parent)!r}).models; "
        "assert not {'torch', 'diffusers', 'xfuser'} & set(sys.modules)"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True)


def test_fp8_weights_are_a_known_dtype(tmp_path: Path) -> None:
    """A checkpoint stored as plain fp8 is described as such."""
    tensors = {
        name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(SINGLE_FILE).items()
    }
    save_file(tensors, tmp_path / "fp8.safetensors")
    info = inspect(tmp_path / "fp8.safetensors")
    assert info.dtype == "float8_e4m3fn"
    assert info.weight_bytes == info.num_parameters
