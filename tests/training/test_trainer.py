"""Training: resumable to the bit, and able to learn."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training.portraits.attributes import draw
from training.portraits.dataset import (
    LONG_LENGTHS,
    SHORT_LENGTH,
    Batches,
    Portraits,
    token_ids,
)
from training.portraits.evaluate import evaluation_prompts
from training.portraits.labels import class_indices
from training.portraits.models import ModelConfig, Trainable, image_ids, pack
from training.portraits.parts import Parts, prepare
from training.portraits.trainer import TrainConfig, Trainer

TINY = ModelConfig(
    heads=2, head_dim=8, rope_axes=(2, 2, 4), double_blocks=1, single_blocks=1, text_dim=16
)
SHORT = TrainConfig(word_steps=2, word_batch=4, steps=6, batch=4, warmup=2, save_every=3)


@pytest.fixture(scope="module")
def parts(portraits: Portraits, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """Tokenizers and colours made from the few portraits of the tests."""
    return prepare(portraits, tmp_path_factory.mktemp("run"))


def build(
    portraits: Portraits,
    parts: Parts,
    folder: Path,
    config: TrainConfig,
    model_config: ModelConfig = TINY,
) -> Trainer:
    """A trainer of a tiny model, always from the same weights."""
    torch.manual_seed(0)
    model = Trainable(model_config, parts.clip, parts.t5)
    batches = Batches(portraits, parts.colors, parts.clip, parts.t5, config.batch, 0, config.shift)
    return Trainer(model, batches, config, folder)


def test_a_resumed_run_ends_with_the_bits_of_an_unbroken_one(
    portraits: Portraits, parts: Parts, tmp_path: Path
) -> None:
    """Weights and their average, after a stop between two checkpoints."""
    whole = build(portraits, parts, tmp_path / "whole", SHORT)
    whole.run_words()
    whole.run()

    stopped = build(portraits, parts, tmp_path / "broken", SHORT)
    stopped.run_words()
    for step in range(3):
        stopped.train_step(stopped.batches.draw(step))
    stopped.save()
    stopped.train_step(stopped.batches.draw(3))  # lost: after the last checkpoint
    resumed = build(portraits, parts, tmp_path / "broken", SHORT)
    assert resumed.resume()
    assert (resumed.word_step, resumed.step) == (2, 3)
    resumed.run()

    for of in ("model", "average"):
        expected = getattr(whole, of).state_dict()
        for name, value in getattr(resumed, of).state_dict().items():
            assert torch.equal(value, expected[name]), name


def test_without_a_checkpoint_there_is_nothing_to_resume(
    portraits: Portraits, parts: Parts, tmp_path: Path
) -> None:
    """A first run starts at step 0."""
    trainer = build(portraits, parts, tmp_path, SHORT)
    assert not trainer.resume()
    assert trainer.step == 0


def test_the_loss_falls(portraits: Portraits, parts: Parts, tmp_path: Path) -> None:
    """Sixty steps on one batch beat the start by far."""
    config = replace(SHORT, steps=60, batch=8, learning_rate=3e-3)
    trainer = build(portraits, parts, tmp_path, config)
    batch = trainer.batches.draw(0)
    losses = [trainer.train_step(batch)[0] for _ in range(config.steps)]
    assert losses[-1] < 0.7 * losses[0]


def test_words_learn_which_part_a_color_belongs_to(portraits: Portraits, tmp_path: Path) -> None:
    """T5 tells clothes from background within a hundred steps, on captions it has not seen.

    Both take their colours from one list, so that a bag of words could not tell.
    """
    rng = random.Random(0)
    seen = Portraits(portraits.pictures, [draw(rng) for _ in range(1500)])  # no picture is drawn
    unseen = Portraits(portraits.pictures, [draw(rng) for _ in range(100)])
    parts = prepare(seen, tmp_path)
    config = TrainConfig(word_steps=100, word_batch=32, warmup=10, learning_rate=3e-3)
    trainer = build(seen, parts, tmp_path, config, replace(TINY, text_dim=64))
    trainer.run_words()
    prompts = evaluation_prompts(unseen, 100, seed=0)
    texts, attributes = zip(*prompts, strict=True)
    with torch.no_grad():
        pooled, text = trainer.model.encode(
            token_ids(parts.clip, list(texts)), token_ids(parts.t5, list(texts), "longest")
        )
        right = trainer.readout(pooled, text, class_indices(attributes)).right
    for name in ("clothes_color", "background"):
        assert right[name][1] >= 0.85, (name, right[name])


def test_batches_repeat_and_carry_every_text_length(portraits: Portraits, parts: Parts) -> None:
    """A step has one batch; texts are padded to lengths that pipelines use."""
    batches = Batches(portraits, parts.colors, parts.clip, parts.t5, 16, 0, 1.0)
    once, again, other = batches.draw(5), batches.draw(5), batches.draw(6)
    assert torch.equal(once.noise, again.noise)
    assert torch.equal(once.t5_ids, again.t5_ids)
    assert once.noise.shape != other.noise.shape or not torch.equal(once.noise, other.noise)
    lengths = {batches.draw(step).t5_ids.shape[1] for step in range(120)}
    assert lengths == {SHORT_LENGTH, *LONG_LENGTHS}


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    """Up over the warm-up, flat, and down over the last part."""
    config = TrainConfig(steps=100, warmup=10, decay_share=0.5, learning_rate=1.0)
    assert config.learning_rate_at(0) == pytest.approx(0.1)
    assert config.learning_rate_at(30) == 1.0
    assert config.learning_rate_at(75) == pytest.approx(0.5)
    assert config.learning_rate_at(100) == 0.0


def test_packing_is_what_the_pipeline_does() -> None:
    """Patches and positions agree with FluxPipeline's own."""
    from diffusers import FluxPipeline

    latents = torch.randn(2, 16, 16, 16)
    expected = FluxPipeline._pack_latents(latents, 2, 16, 16, 16)
    assert torch.equal(pack(latents), expected)
    ids = FluxPipeline._prepare_latent_image_ids(2, 8, 8, "cpu", torch.float32)
    assert torch.equal(image_ids(64), ids)
