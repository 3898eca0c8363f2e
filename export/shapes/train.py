"""Trains the bundled models from nothing; each command is one run, in a folder of its name under --out.

    python -m export.shapes.train vae-dit     --out runs --minutes 6  --decay 3     # autoencoder
    python -m export.shapes.train dit         --out runs --minutes 28 --decay 20    # text encoders and transformer
    python -m export.shapes.train decoder-dit --out runs --minutes 4  --decay 5     # may run beside `dit`

and likewise vae-unet (12 + 4), unet (85 + 14) and decoder-unet (2 + 3). The numbers are CPU minutes of one thread of a
Sapphire Rapids Xeon without AMX, shared with other work: what the bundled models took, from seed 0. Their training was
interrupted: the decays of dit and of the autoencoders were two in a row, the second with seed 1 and half the scenes
of one object instead of a third; unet had decayed from minute 26 to 38 already when it went on, with seed 7, at the
constant rate. dit's first 330 steps had batches of 64, unet's first 430 used AdamW alone. A file named `anneal` in a
run's folder starts its decay early; `--resume` with more minutes goes on from state.pt.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from . import checkpoint, dit, unet, vae
from .loop import Loop, Schedule
from .pool import Pool

FAMILIES = {"dit": dit, "unet": unet}
BATCH = 32
POOL = 8192  # encoded pictures
REFRESH = (250, 1024)  # every so many steps, so many new pictures
LESSONS = 400  # steps in which the text encoders learn to read before they have to help


def train_denoiser(folder: Path, vae_folder: Path, family: str, schedule: Schedule, seed: int, resume: bool) -> None:
    """Trains a denoiser and its text encoders into the pipeline directory `folder/shapes-<family>`."""
    torch.manual_seed(seed)
    autoencoder = AutoencoderKL.from_pretrained(vae_folder).eval().requires_grad_(False)
    training = FAMILIES[family].Training(autoencoder, folder)
    sizes = {k: sum(p.numel() for p in m.parameters()) for k, m in training.modules.items()}
    print("parameters", sizes, "vae", sum(p.numel() for p in autoencoder.parameters()), flush=True)
    pool = Pool(autoencoder, training.tokenizers, training.starts, POOL, seed + resume)
    print(time.strftime("%H:%M:%S"), "pool encoded", flush=True)
    loop = Loop(folder, training.modules, training.optimisers(), schedule)
    if resume:
        loop.resume()
    else:
        learn_to_read(training, pool)

    def loss_of_batch(step: int) -> torch.Tensor:
        if step % REFRESH[0] == REFRESH[0] - 1:
            pool.refresh(REFRESH[1])
        return training.loss(pool.batch(BATCH, drop=0.1))

    decoder = folder.with_name(f"decoder-{family}") / "vae"

    def evaluate(minutes: float) -> None:
        if decoder.exists():  # trained on in the meantime
            training.vae = AutoencoderKL.from_pretrained(decoder).eval()
        pipeline = training.pipeline(loop.averaged)
        checkpoint.save(pipeline, folder / f"shapes-{family}", FAMILIES[family].GENERATION)
        print(f"{minutes:6.1f} min  saved", flush=True)

    loop.run(loss_of_batch, evaluate)


def learn_to_read(training: dit.Training | unet.Training, pool: Pool) -> None:
    """Trains the text encoders on captions alone."""
    readers = [p for name, m in training.modules.items() if name not in ("unet", "transformer") for p in m.parameters()]
    optimiser = torch.optim.AdamW(readers, lr=1e-3, weight_decay=0.01)
    for step in range(LESSONS):
        optimiser.param_groups[0]["lr"] = 1e-3 * min(1, (step + 1) / 50, 2 * (1 - step / LESSONS))
        optimiser.zero_grad()
        loss = training.lesson(pool.batch(128, drop=0.0))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(readers, 1.0)
        optimiser.step()
        if step % 50 == 49:
            print(f"lesson {step + 1}  loss {loss.item():.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=[f"{part}{family}" for part in ("vae-", "decoder-", "") for family in FAMILIES])
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--minutes", type=float, default=6.0, help="CPU minutes at the constant rate")
    parser.add_argument("--decay", type=float, default=3.0, help="CPU minutes of the decay after them")
    parser.add_argument("--save-every", type=float, default=8.0, help="CPU minutes between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the run's state.pt")
    args = parser.parse_args()
    torch.set_num_threads(1)
    schedule = Schedule(args.minutes, args.decay, save_every=args.save_every)
    folder = args.out / args.what
    part, _, family = args.what.rpartition("-")
    encoder = args.out / f"vae-{family}" / "vae"
    if part:
        frozen = encoder if part == "decoder" else None
        vae.train(folder, family, schedule, args.seed, args.resume, frozen)
    else:
        train_denoiser(folder, encoder, family, schedule, args.seed, args.resume)


if __name__ == "__main__":
    main()
