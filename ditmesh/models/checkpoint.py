"""Opening a transformer's files: which layout, which dimensions, which tensors.

Reads headers and JSON only. Whatever is missing or out of place is found here, so that neither
`info` nor `loading` has to look again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditmesh.errors import DamagedModel
from ditmesh.models import flux_checkpoint
from ditmesh.models.flux_checkpoint import PATCH_SIZE, FluxConfig, Source
from ditmesh.models.safetensors_file import DTYPE_NAMES, StoredTensor, read_header

SINGLE_FILE_PREFIX = "model.diffusion_model."
"""Stands before the transformer's names in a checkpoint that holds other parts as well."""

PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl"})
"""Files that could run code when they are loaded; they never are."""


@dataclass(frozen=True)
class Checkpoint:
    """A transformer's stored tensors, how a diffusers module reads them, and its dimensions."""

    layout: str
    config: FluxConfig
    tensors: Mapping[str, StoredTensor]
    sources: Mapping[str, Source]

    @property
    def used(self) -> list[StoredTensor]:
        """The stored tensors that the transformer consists of, by name."""
        keys = {key for source in self.sources.values() for key, _, _ in source.parts}
        return [self.tensors[key] for key in sorted(keys)]


def open_checkpoint(path: Path) -> Checkpoint:
    """The checked table of a model's tensors; what `inspect` and the loader both stand on.

    Raises:
        DamagedModel: as `inspect`.
    """
    if not path.exists():
        raise DamagedModel(f"{path}: no such file or folder")
    checkpoint = _open_folder(path) if path.is_dir() else _open_single_file(path)
    _check_tensors(path, checkpoint)
    return checkpoint


def is_model_folder(path: Path) -> bool:
    """Whether a folder claims to be one model, rather than to hold several."""
    return (path / "model_index.json").is_file() or (
        (path / "config.json").is_file() or (path / "transformer" / "config.json").is_file()
    )


def _open_folder(path: Path) -> Checkpoint:
    folder = path / "transformer" if (path / "transformer").is_dir() else path
    config = _diffusers_config(folder / "config.json")
    tensors: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        tensors.update(read_header(file)[0])
    return Checkpoint("diffusers", config, tensors, flux_checkpoint.diffusers_sources(config))


def _diffusers_config(path: Path) -> FluxConfig:
    values = read_json(path)
    kind = values.get("_class_name")
    if kind != "FluxTransformer2DModel":
        raise DamagedModel(f"{path}: describes a {kind}, not a FluxTransformer2DModel")
    try:
        in_channels = int(values.get("in_channels", 64))
        out_channels = int(values.get("out_channels") or in_channels)
        config = FluxConfig(
            latent_channels=in_channels // PATCH_SIZE**2,
            num_layers=int(values.get("num_layers", 19)),
            num_single_layers=int(values.get("num_single_layers", 38)),
            num_heads=int(values.get("num_attention_heads", 24)),
            head_dim=int(values.get("attention_head_dim", 128)),
            text_dim=int(values.get("joint_attention_dim", 4096)),
            pooled_dim=int(values.get("pooled_projection_dim", 768)),
            guidance_embeds=bool(values.get("guidance_embeds", False)),
            axes_dims=tuple(int(size) for size in values.get("axes_dims_rope", (16, 56, 56))),
        )
    except (TypeError, ValueError) as error:
        raise DamagedModel(f"{path}: a dimension is not a number: {error}") from error
    _check_channels(path, in_channels, out_channels)
    if int(values.get("patch_size", 1)) != 1:
        raise DamagedModel(f"{path}: patch_size is {values['patch_size']}, only 1 is known")
    if sum(config.axes_dims) != config.head_dim or any(size % 2 for size in config.axes_dims):
        raise DamagedModel(
            f"{path}: axes_dims_rope {list(config.axes_dims)} must be even and sum to "
            f"attention_head_dim {config.head_dim}"
        )
    return config


def _check_channels(path: Path, in_channels: int, out_channels: int) -> None:
    """Fill, Canny, Depth and Kontext-like variants take more channels than they return."""
    if in_channels != out_channels:
        raise DamagedModel(
            f"{path}: takes {in_channels} values a token and returns {out_channels}; variants "
            "with extra image channels (fill, control) are not supported"
        )
    if in_channels % PATCH_SIZE**2 or in_channels == 0:
        raise DamagedModel(f"{path}: {in_channels} values a token are no {PATCH_SIZE}x{PATCH_SIZE}")


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder, as its index has them. Raises DamagedModel for pickles."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if len(indexes) == 1:
        names = set(read_json(indexes[0]).get("weight_map", {}).values())
        for name in names:
            if not isinstance(name, str) or Path(name).name != name:
                raise DamagedModel(f"{indexes[0]}: weight file {name!r} is not a plain file name")
        if not names:
            raise DamagedModel(f"{indexes[0]}: lists no weight files")
        return [folder / name for name in sorted(names)]
    files = sorted(folder.glob("*.safetensors"))
    if len(indexes) > 1 or len(files) > 1:
        raise DamagedModel(f"{folder}: several sets of weights, and nothing says which to use")
    if not files:
        pickled = [file.name for file in folder.iterdir() if file.suffix in PICKLE_SUFFIXES]
        hint = f"; {min(pickled)} is a pickle and is never loaded" if pickled else ""
        raise DamagedModel(f"{folder}: no .safetensors weights{hint}")
    return files


def _open_single_file(path: Path) -> Checkpoint:
    if path.suffix in PICKLE_SUFFIXES:
        raise DamagedModel(f"{path}: a pickle is never loaded; convert it to safetensors")
    if path.suffix != ".safetensors":
        raise DamagedModel(f"{path}: only .safetensors files can be models")
    tensors, _ = read_header(path)
    prefix = SINGLE_FILE_PREFIX if f"{SINGLE_FILE_PREFIX}img_in.weight" in tensors else ""
    config = _single_file_config(path, tensors, prefix)
    # Other parts of a whole checkpoint (text encoders, autoencoder) are not the transformer's.
    mine = {key: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    sources = flux_checkpoint.single_file_sources(config, prefix)
    return Checkpoint("single_file", config, mine, sources)


def _single_file_config(path: Path, tensors: Mapping[str, StoredTensor], prefix: str) -> FluxConfig:
    """Read the dimensions from shapes.

    The files do not store the split of a head over the axes of rotary position; every Flux.1
    gives 1/8 of it to the first and 7/16 to each of the others (16, 56, 56 of 128).
    """
    if f"{prefix}img_in.weight" not in tensors or not any(
        key.startswith(f"{prefix}double_blocks.0.") for key in tensors
    ):
        raise DamagedModel(f"{path}: not a Flux.1 transformer (no img_in and double_blocks)")

    def shape(key: str, dimensions: int) -> tuple[int, ...]:
        tensor = tensors.get(prefix + key)
        if tensor is None or len(tensor.shape) != dimensions:
            raise DamagedModel(f"{path}: tensor {prefix + key!r} is missing or malformed")
        return tensor.shape

    hidden, in_channels = shape("img_in.weight", 2)
    out_channels, _ = shape("final_layer.linear.weight", 2)
    (head_dim,) = shape("double_blocks.0.img_attn.norm.query_norm.scale", 1)
    _check_channels(path, in_channels, out_channels)
    if head_dim == 0 or head_dim % 32 or hidden % head_dim:
        raise DamagedModel(
            f"{path}: heads of {head_dim} in a width of {hidden}; a Flux.1 head is a multiple "
            "of 32 and divides the width"
        )
    return FluxConfig(
        latent_channels=in_channels // PATCH_SIZE**2,
        num_layers=_count_blocks(tensors, f"{prefix}double_blocks."),
        num_single_layers=_count_blocks(tensors, f"{prefix}single_blocks."),
        num_heads=hidden // head_dim,
        head_dim=head_dim,
        text_dim=shape("txt_in.weight", 2)[1],
        pooled_dim=shape("vector_in.in_layer.weight", 2)[1],
        guidance_embeds=f"{prefix}guidance_in.in_layer.weight" in tensors,
        axes_dims=(head_dim // 8, head_dim * 7 // 16, head_dim * 7 // 16),
    )


def _count_blocks(keys: Iterable[str], prefix: str) -> int:
    return len({key[len(prefix) :].split(".", 1)[0] for key in keys if key.startswith(prefix)})


def _check_tensors(path: Path, checkpoint: Checkpoint) -> None:
    """Exactly the tensors that the dimensions call for, with the right shapes."""
    wanted = flux_checkpoint.stored_shapes(
        checkpoint.sources, flux_checkpoint.diffusers_shapes(checkpoint.config)
    )
    tensors = checkpoint.tensors
    missing = sorted(wanted.keys() - tensors.keys())
    if missing:
        raise DamagedModel(f"{path}: {len(missing)} tensors are missing, e.g. {missing[0]!r}")
    extra = sorted(tensors.keys() - wanted.keys())
    if extra:
        hint = "; scaled fp8 weights are not supported" if "scale" in extra[-1] else ""
        raise DamagedModel(f"{path}: {len(extra)} unexpected tensors, e.g. {extra[-1]!r}{hint}")
    for key, shape in wanted.items():
        stored = tensors[key]
        if stored.shape != shape:
            raise DamagedModel(
                f"{stored.file}: tensor {key!r} is {list(stored.shape)}, not {list(shape)}"
            )
        if stored.dtype not in DTYPE_NAMES:
            raise DamagedModel(f"{stored.file}: tensor {key!r} holds {stored.dtype}, not floats")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises DamagedModel naming the file."""
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise DamagedModel(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DamagedModel(f"{path}: not valid JSON") from error
    if not isinstance(values, dict):
        raise DamagedModel(f"{path}: not a JSON object")
    return values
