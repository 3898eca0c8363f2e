"""The one training loop: constant rate, then a decay to zero that a clock or a file starts; EMA; resume.

Time is the process' own CPU time, so that a busy machine does not cut a training short.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Schedule:
    """CPU minutes at the constant rate and of the linear decay after it; steps of warm-up; minutes between saves."""

    constant: float
    decay: float
    warmup_steps: int = 100
    save_every: float = 8.0


class Loop:
    """Trains `modules` in place and keeps an exponential moving average of them in `averaged`.

    A file named `anneal` in the run's folder starts the decay early; `state.pt` there is what `resume` reads.
    """

    def __init__(
        self,
        folder: Path,
        modules: dict[str, nn.Module],
        optimisers: list[torch.optim.Optimizer],
        schedule: Schedule,
        ema: float = 0.998,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.modules, self.optimisers, self.schedule, self.ema = folder, modules, optimisers, schedule, ema
        self.averaged = {k: copy.deepcopy(m).requires_grad_(False).eval() for k, m in modules.items()}
        self.rates = [[g["lr"] for g in o.param_groups] for o in optimisers]
        self.step, self.minutes = 0, 0.0
        self.decay_from: float | None = None

    def resume(self) -> None:
        state = torch.load(self.folder / "state.pt", weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
            self.averaged[name].load_state_dict(state["averaged"][name])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step, self.minutes = state["step"], state["minutes"]
        if self.minutes >= self.schedule.constant:  # a longer schedule goes back to the constant rate
            self.decay_from = state["decay_from"]

    def _save(self) -> None:
        state = {
            "modules": {k: m.state_dict() for k, m in self.modules.items()},
            "averaged": {k: m.state_dict() for k, m in self.averaged.items()},
            "optimisers": [o.state_dict() for o in self.optimisers],
            "step": self.step,
            "minutes": self.minutes,
            "decay_from": self.decay_from,
        }
        torch.save(state, self.folder / "state.tmp")
        (self.folder / "state.tmp").replace(self.folder / "state.pt")  # a kill while saving loses nothing

    def _rate(self) -> float:
        """Factor on every learning rate; 0 ends the run."""
        due = self.minutes >= self.schedule.constant or (self.folder / "anneal").exists()
        if self.decay_from is None and due:
            self.decay_from = self.minutes
            print(f"{self.minutes:6.1f} min  decay starts", flush=True)
        if self.decay_from is None:
            return min(1.0, (self.step + 1) / self.schedule.warmup_steps)
        return max(0.0, 1 - (self.minutes - self.decay_from) / self.schedule.decay)

    def run(self, loss_of_batch: Callable[[int], torch.Tensor], evaluate: Callable[[float], None]) -> None:
        """Steps until the decay ends. `loss_of_batch(step)` is a scalar; `evaluate(minutes)` follows every save."""
        parameters = [p for m in self.modules.values() for p in m.parameters()]
        averages = [p for m in self.averaged.values() for p in m.parameters()]
        losses: list[float] = []
        next_save = self.minutes + self.schedule.save_every
        while (factor := self._rate()) > 0:
            began = time.process_time()
            for optimiser, rates in zip(self.optimisers, self.rates, strict=True):
                for group, rate in zip(optimiser.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
                optimiser.zero_grad()
            loss = loss_of_batch(self.step)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimiser in self.optimisers:
                optimiser.step()
            young = (self.step + 1) / (self.step + 10)  # a fresh average forgets the random start quickly
            with torch.no_grad():
                torch._foreach_lerp_(averages, parameters, 1 - min(self.ema, young))
            losses.append(loss.item())
            self.step += 1
            self.minutes += (time.process_time() - began) / 60
            if self.step % 100 == 0:
                print(
                    f"{time.strftime('%H:%M:%S')} {self.minutes:6.1f} min  step {self.step}  "
                    f"loss {np.mean(losses[-100:]):.4f}",
                    flush=True,
                )
            if self.minutes >= next_save:  # evaluation is not counted as training time
                next_save += self.schedule.save_every
                self._save()
                evaluate(self.minutes)
        self._save()
        evaluate(self.minutes)
