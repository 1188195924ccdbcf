"""`ditmesh sample`: one job, with its progress, its summary and its picture."""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
from pathlib import Path

from ditmesh import telemetry
from ditmesh.cli import connecting, summary
from ditmesh.cli.exit_codes import INTERRUPTED, UsageError
from ditmesh.cli.job_files import read_conditioning, read_golden
from ditmesh.cli.pictures import write_pictures
from ditmesh.cli.progress import ProgressView
from ditmesh.cli.tables import counted
from ditmesh.client import Client, ClusterSnapshot, Conditioning, JobHandle, JobOptions
from ditmesh.client.cluster import ModelCard
from ditmesh.errors import DitmeshError
from ditmesh.options import bounded

HELP = "sample one job"
DESCRIPTION = """Samples one job and shows how it goes.

What to sample is a prompt, a file of conditioning, or a golden case. Ctrl-C cancels the job on
the cluster and waits until it has ended there."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="for models that bring their text encoders")
    what.add_argument(
        "--cond",
        type=Path,
        metavar="FILE.safetensors",
        help="tensors positive [1,T,D], and as needed negative, pooled_positive, pooled_negative",
    )
    what.add_argument(
        "--golden",
        type=Path,
        metavar="FILE.safetensors",
        help="a run of ComfyUI's KSampler: does the same and says how far the result is from it; "
        "the options of the job are the file's",
    )
    parser.add_argument("--model", help="default: the only one there is")
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="write the picture here")
    add_job_arguments(parser)
    parser.add_argument(
        "--timeout",
        type=bounded(float, 0.001, 1e6),
        metavar="SECONDS",
        help="give the job up after this long (default: never)",
    )
    parser.add_argument("--trace-file", type=Path, help="add the client's own spans to this file")
    connecting.add_arguments(parser)


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the job itself."""
    job = parser.add_argument_group("job")
    job.add_argument("--negative", metavar="PROMPT", help="what not to show; with --cfg above 1")
    job.add_argument("--sampler", default="euler", help="default: %(default)s")
    job.add_argument("--scheduler", default="simple", help="default: %(default)s")
    job.add_argument("--steps", type=bounded(int, 1, 10_000), default=20, help="default: 20")
    job.add_argument("--cfg", type=bounded(float, 0, 1000), default=1.0, help="default: 1")
    job.add_argument("--guidance", type=bounded(float, 0, 1000), help="default: the model's")
    job.add_argument("--shift", type=float, help="of the noise schedule; default: the model's")
    job.add_argument("--seed", type=bounded(int, 0, 2**64 - 1), default=0, help="default: 0")
    job.add_argument("--denoise", type=bounded(float, 0, 1), default=1.0, help="default: 1")
    job.add_argument("--size", type=size, default=(1024, 1024), help="default: 1024x1024 pixels")
    job.add_argument("--batch", type=bounded(int, 1, 1024), default=1, help="default: 1 picture")
    job.add_argument(
        "--fallback",
        choices=("allow", "forbid", "local_only"),
        default="allow",
        help="what may run the job when the group cannot (default: %(default)s)",
    )


def size(text: str) -> tuple[int, int]:
    """An argparse type: WIDTHxHEIGHT in pixels, as width and height."""
    width, cross, height = text.partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, such as 1024x768")
    found = int(width), int(height)
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text}: each must be at least 1")
    return found


def run(args: argparse.Namespace) -> int:
    """Sample, with the client's own spans in `args.trace_file`, if given."""
    if args.trace_file is not None:
        telemetry.setup(
            telemetry.TelemetryConfig("client", exporters=("file",), trace_file=args.trace_file)
        )
    # SIGTERM ends a job as cleanly as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        # One trace for all: prompt, job and picture.
        with connecting.connect(args) as client, telemetry.span("ditmesh sample"):
            return sample(client, args)
    finally:
        telemetry.shutdown()


def sample(client: Client, args: argparse.Namespace) -> int:
    """Run the job that the options describe, and report. Raises the client's errors."""
    view = ProgressView(sys.stderr)
    card = choose_model(client.cluster(), args.model)
    golden = None if args.golden is None else read_golden(args.golden, card.name)
    options = golden.options if golden else _options(client, args, card)
    options["fallback"] = args.fallback
    job = client.start(deadline_s=args.timeout, **options)
    try:
        for event in job:
            view.show(event)
    except KeyboardInterrupt:
        return _cancelled(job, view)
    except DitmeshError:
        view.say(f"job {job.job_id}, trace {job.trace_id}")
        raise
    view.leave()
    result = job.result()
    print(summary.describe(result.summary, args.fallback))
    if args.out is not None:
        for line in write_pictures(args.out, client, card, result.latent):
            print(line)
    if golden is not None:
        difference = golden.difference(result.latent)
        print(f"largest difference from ComfyUI's own latent: {difference:.1e}")
    return 0


def choose_model(snapshot: ClusterSnapshot, name: str | None) -> ModelCard:
    """The model of that name, or the only one. Raises UnknownModel or UsageError."""
    if name is not None:
        return snapshot.model(name)
    if len(snapshot.models) != 1:
        known = ", ".join(card.name for card in snapshot.models) or "none yet"
        raise UsageError(f"give --model; this cluster serves: {known}")
    return snapshot.models[0]


def _options(client: Client, args: argparse.Namespace, card: ModelCard) -> JobOptions:
    width, height = args.size
    cell = card.vae_factor
    if width % cell or height % cell:
        raise UsageError(f"--size {width}x{height}: each must be a multiple of {cell}")
    positive, negative = _conditioning(client, args, card)
    options: JobOptions = {
        "model": card.name,
        "positive": positive,
        "negative": negative,
        "size": (args.batch, height // cell, width // cell),
        "sampler": args.sampler,
        "scheduler": args.scheduler,
        "steps": args.steps,
        "cfg": args.cfg,
        "denoise": args.denoise,
        "seed": args.seed,
        "shift": args.shift,
    }
    return options


def _conditioning(
    client: Client, args: argparse.Namespace, card: ModelCard
) -> tuple[Conditioning, Conditioning | None]:
    if args.cond is not None:
        if args.negative is not None:
            raise UsageError("--negative goes with --prompt; --cond brings its own")
        return read_conditioning(args.cond, args.guidance)
    if not card.has_pipeline:
        raise UsageError(
            f"model {card.name} has no text encoders here; use --cond with embeddings of your own"
        )
    positive = _encoded(client, card, args.prompt, args.guidance)
    if args.negative is None and args.cfg == 1.0:
        return positive, None
    return positive, _encoded(client, card, args.negative or "", args.guidance)


def _encoded(client: Client, card: ModelCard, prompt: str, guidance: float | None) -> Conditioning:
    encoded = client.encode_prompt(card.name, prompt)
    if encoded.truncated_tokens:
        lost = counted(encoded.truncated_tokens, "token")
        print(f"the prompt is too long: {lost} at its end do not count", file=sys.stderr)
    if guidance is None:
        return encoded.conditioning
    return dataclasses.replace(encoded.conditioning, guidance=guidance)


def _cancelled(job: JobHandle, view: ProgressView) -> int:
    """Ctrl-C: end the job on the cluster, unless it has ended. A second one leaves at once."""
    view.say("cancelling; Ctrl-C again leaves without waiting")
    if job.cancel():
        view.say(f"job {job.job_id} has ended on the cluster")
    else:
        view.say(f"job {job.job_id} had ended before it could be cancelled")
    return INTERRUPTED
