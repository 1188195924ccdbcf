"""What models there are and what each is, read from headers only.

Nothing here imports torch, allocates a weight, or opens anything but safetensors and JSON.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import numpy as np

from ditmesh.errors import DamagedModel, UnknownModel
from ditmesh.models.checkpoint import (
    PICKLE_SUFFIXES,
    Checkpoint,
    is_model_folder,
    open_checkpoint,
)
from ditmesh.models.fingerprint import to_bfloat16, weights_fingerprint
from ditmesh.models.flux_checkpoint import PATCH_SIZE, FluxConfig, diffusers_shapes
from ditmesh.models.latents import LatentFormat, read_latent_format
from ditmesh.models.pipeline_files import check_pipeline_files
from ditmesh.models.safetensors_file import DTYPE_NAMES, StoredTensor

_WIDENED = {"F32": "<f4", "F16": "<f2"}
"""Stored types that are rounded to bfloat16 for the fingerprint, as numpy names them."""


@dataclass(frozen=True)
class ModelInfo:
    """One model of a models folder. Sizes are counts, `weight_bytes` is as stored.

    `dtype` is the stored floating-point type that most weights have, by torch's name for it.
    `patch_size` is how many latent rows and columns one token covers, so latent sizes must be
    multiples of it. `fingerprint` is equal for the same weights, whatever file layout or element
    type they are stored in.
    """

    name: str
    family: str
    path: Path
    layout: str
    """`diffusers` or `single_file`."""
    latent_channels: int
    patch_size: int
    num_heads: int
    head_dim: int
    text_dim: int
    pooled_dim: int
    guidance_embeds: bool
    num_parameters: int
    weight_bytes: int
    dtype: str
    fingerprint: str
    default_shift: float | None
    """Shift of the noise schedule that the model's folder asks for; None: its family's."""
    config: FluxConfig
    latent_format: LatentFormat
    """The model's own: a pipeline folder may bring another autoencoder than its family's."""
    files: tuple[Path, ...] = field(repr=False)


@dataclass(frozen=True)
class Catalogue:
    """The models of a folder, and what is wrong with those that cannot be used.

    A name is a key here and nothing else: it is never joined to a path, so no name can lead
    out of the folder.
    """

    root: Path
    models: Mapping[str, ModelInfo]
    problems: Mapping[str, DamagedModel]

    def get(self, name: str) -> ModelInfo:
        """The model of that name.

        Raises:
            UnknownModel: there is none; names those there are.
            DamagedModel: there is one, but it is damaged.
        """
        if name in self.models:
            return self.models[name]
        if name in self.problems:
            raise self.problems[name]
        raise self._unknown(name)

    def check_start(self, wanted: Iterable[str] = ()) -> None:
        """What a process that serves this folder, and loads `wanted` at once, must not lack.

        A damaged model beside sound ones stops nothing: whoever asks for it is told.

        Raises:
            UnknownModel, DamagedModel: as `get`, of one of `wanted`.
            DamagedModel: there are models here, and none of them can be used.
        """
        if self.problems and not self.models:
            raise next(iter(self.problems.values()))
        for name in wanted:
            self.get(name)

    def _unknown(self, name: str) -> UnknownModel:
        known = ", ".join(sorted(self.models)) or "none"
        return UnknownModel(f"no model {name!r} here; there are: {known}", field="model")


def inspect(path: Path | str, name: str | None = None) -> ModelInfo:
    """Describe the model at `path`: a pipeline or transformer folder, or a safetensors file.

    Raises:
        DamagedModel: a file is missing, truncated or a pickle, the model is not a Flux.1, or
            its tensors are not those that its dimensions call for; or a text encoder, tokenizer
            or autoencoder that a pipeline folder lists is not sound. Names the file.
    """
    path = Path(path)
    checkpoint = open_checkpoint(path)
    check_pipeline_files(path)
    config, used = checkpoint.config, checkpoint.used
    dtypes: Counter[str] = Counter()
    for tensor in used:
        dtypes[tensor.dtype] += tensor.numel
    return ModelInfo(
        name=name or (path.name if path.is_dir() else path.stem),
        family="flux",
        path=path,
        layout=checkpoint.layout,
        latent_channels=config.latent_channels,
        patch_size=PATCH_SIZE,
        num_heads=config.num_heads,
        head_dim=config.head_dim,
        text_dim=config.text_dim,
        pooled_dim=config.pooled_dim,
        guidance_embeds=config.guidance_embeds,
        num_parameters=sum(tensor.numel for tensor in used),
        weight_bytes=sum(tensor.nbytes for tensor in used),
        dtype=DTYPE_NAMES[dtypes.most_common(1)[0][0]],
        fingerprint=_fingerprint(checkpoint),
        default_shift=_default_shift(path, config),
        config=config,
        latent_format=read_latent_format(path, config.latent_channels),
        files=tuple(sorted({tensor.file for tensor in used})),
    )


def _default_shift(path: Path, config: FluxConfig) -> float | None:
    """The fixed shift of a pipeline's scheduler, as the exponent that Flux's process takes.

    diffusers' sigma = s t / (1 + (s - 1) t) is Flux's with shift ln s. A scheduler that shifts
    by picture size has no fixed one. Without a scheduler, a Flux without embedded guidance is
    taken for schnell, whose schedule is not shifted.
    """
    file = path / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        return None if config.guidance_embeds else 0.0
    try:
        scheduler = json.loads(file.read_text())
        if scheduler.get("use_dynamic_shifting"):
            return None
        return math.log(float(scheduler["shift"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedModel(f"{file}: no scheduler with a shift: {error}") from error


def scan(root: Path | str) -> Catalogue:
    """Inspect every model folder and model file below `root`.

    The name is the path below `root` with forward slashes, without `.safetensors`. Hidden files
    and folders are left out.

    Raises:
        DamagedModel: `root` is not a readable folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise DamagedModel(f"{root}: no such models folder")
    models: dict[str, ModelInfo] = {}
    problems: dict[str, DamagedModel] = {}
    for path in _candidates(root, frozenset()):
        relative = path.relative_to(root)
        name = (relative if path.is_dir() else _stemmed(relative)).as_posix()
        try:
            if name in models:
                raise DamagedModel(f"{path}: {models[name].path} has the same name; rename one")
            models[name] = inspect(path, name)
        except DamagedModel as error:
            # Under its file's own name where the other model of that name is sound.
            problems[relative.as_posix() if name in models else name] = error
    return Catalogue(root, MappingProxyType(models), MappingProxyType(problems))


def _stemmed(path: Path) -> Path:
    return path.with_suffix("") if path.suffix == ".safetensors" else path


def _candidates(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    """Model folders and model-like files, depth first, without following a loop of links."""
    here = folder.resolve()
    if here in above:
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if is_model_folder(path):
                yield path
            else:
                yield from _candidates(path, above | {here})
        elif path.suffix == ".safetensors" or path.suffix in PICKLE_SUFFIXES:
            yield path


def _fingerprint(checkpoint: Checkpoint) -> str:
    """`fingerprint.weights_fingerprint` of a checkpoint's files, as hexadecimal digits."""
    with ExitStack() as stack:
        files = {
            path: stack.enter_context(path.open("rb"))
            for path in {tensor.file for tensor in checkpoint.used}
        }

        def read(stored: str, start: int, stop: int) -> bytes:
            tensor = checkpoint.tensors[stored]
            return _elements(files[tensor.file], tensor, start, stop)

        shapes = diffusers_shapes(checkpoint.config)
        return weights_fingerprint(shapes, checkpoint.sources, read).hex()


def _elements(file: BinaryIO, tensor: StoredTensor, start: int, stop: int) -> bytes:
    size = tensor.nbytes // tensor.numel
    file.seek(tensor.offset + start * size)
    raw = file.read((stop - start) * size)
    if tensor.dtype in _WIDENED:
        return to_bfloat16(np.frombuffer(raw, _WIDENED[tensor.dtype]).astype(np.float32))
    # bfloat16 itself, or a type that no client holds in full precision.
    return raw
