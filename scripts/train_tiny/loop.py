"""One training loop for all stages: schedule, average weights, checkpoints, a log, signals."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SAVE_EVERY = 30.0
SHOW_EVERY = 300.0


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal by Newton and Schulz's iteration (Jordan et al. 2024), for matrices.

    `torch.optim.Muon` does the same in bfloat16, which takes twice as long as all else of a step where the processor
    has no instructions for it. This is in the weights' own precision.
    """

    def __init__(self, matrices: list[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                mean = state.setdefault("momentum", torch.zeros_like(weight))
                mean.lerp_(weight.grad, 1 - group["momentum"])
                towards = orthogonal(weight.grad.lerp(mean, group["momentum"]))
                rows, columns = weight.shape
                weight.add_(towards, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Bring all singular values of a matrix near 1: to 0.7 to 1.2, by five steps of a quintic polynomial."""
    a, b, c = 3.4445, -4.775, 2.0315
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x if wide else x.T


class Optimizers:
    """Muon for matrices and, as matrices, for convolutions; AdamW for the rest: embeddings, biases, norms."""

    def __init__(self, modules: dict[str, torch.nn.Module], rate: float) -> None:
        embeddings = {
            id(part.weight) for m in modules.values() for part in m.modules() if isinstance(part, torch.nn.Embedding)
        }
        weights = [p for module in modules.values() for p in module.parameters()]
        self.matrices = [p for p in weights if p.ndim >= 2 and id(p) not in embeddings]
        self.others = [p for p in weights if p.ndim < 2 or id(p) in embeddings]
        # Muon takes two dimensions: these share the memory of the weights that they stand for.
        self.flat = [torch.nn.Parameter(p.detach().flatten(1)) for p in self.matrices]
        self.muon = Muon(self.flat, lr=rate)
        self.adam = torch.optim.AdamW(self.others, lr=rate / 10, betas=(0.9, 0.98), weight_decay=0.0)
        self.rates: dict[int, float] = {id(self.muon): rate, id(self.adam): rate / 10}

    def step(self, scale: float) -> None:
        """Make one step at `scale` times the learning rates, and drop the gradients."""
        for optimizer in (self.muon, self.adam):
            for group in optimizer.param_groups:
                group["lr"] = self.rates[id(optimizer)] * scale
        for flat, weight in zip(self.flat, self.matrices, strict=True):
            flat.grad = None if weight.grad is None else weight.grad.flatten(1)
        self.muon.step()
        self.adam.step()
        for weight in (*self.flat, *self.matrices, *self.others):
            weight.grad = None

    def state(self) -> list[dict[str, Any]]:
        return [self.muon.state_dict(), self.adam.state_dict()]

    def load(self, states: list[dict[str, Any]]) -> None:
        self.muon.load_state_dict(states[0])
        self.adam.load_state_dict(states[1])


def train(
    name: str,
    modules: dict[str, torch.nn.Module],
    loss_of: Callable[[int], dict[str, torch.Tensor]],
    show: Callable[[dict[str, torch.nn.Module]], None],
    output: Path,
    steps: int,
    rate: float,
    device: torch.device,
) -> dict[str, torch.nn.Module] | None:
    """Train `modules` for `steps` in all (earlier runs count); return their averages, or None when stopped before that.

    Args:
        loss_of: takes the step and gives named losses, of which "loss" is stepped on.
        rate: learning rate of matrices and convolutions, by Muon; everything else has a tenth of it, by AdamW.
    """
    averages = {key: copy.deepcopy(module).eval().requires_grad_(False) for key, module in modules.items()}
    weights: list[torch.Tensor] = [p for module in modules.values() for p in module.parameters()]
    mean_weights: list[torch.Tensor] = [p for module in averages.values() for p in module.parameters()]
    optimizer = Optimizers(modules, rate)
    step, before = 0, 0.0
    checkpoint = output / f"{name}.pt"
    if checkpoint.is_file():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        for key, module in modules.items():
            module.load_state_dict(saved["modules"][key])
            averages[key].load_state_dict(saved["averages"][key])
        optimizer.load(saved["optimizer"])
        step, before = saved["step"], saved["seconds"]
    stopped: list[int] = []
    old = {n: signal.signal(n, lambda number, frame: stopped.append(number)) for n in (signal.SIGTERM, signal.SIGINT)}
    start = saved_at = shown_at = logged_at = time.monotonic()

    def save() -> None:
        state: dict[str, Any] = {"step": step, "seconds": before + time.monotonic() - start}
        state["modules"] = {key: module.state_dict() for key, module in modules.items()}
        state["averages"] = {key: module.state_dict() for key, module in averages.items()}
        state["optimizer"] = optimizer.state()
        torch.save(state, checkpoint.with_suffix(".part"))
        os.replace(checkpoint.with_suffix(".part"), checkpoint)

    with open(output / f"{name}.jsonl", "a", encoding="utf-8") as log:
        while step < steps and not stopped:
            now = time.monotonic()
            seconds = before + now - start
            scale = min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
            losses = loss_of(step)
            losses["loss"].backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step(scale)
            step += 1
            decay = min(0.998, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(mean_weights, weights, 1 - decay)
            if now - logged_at > 1 or step == 1:
                row = {"step": step, "seconds": round(seconds, 1), "rate": rate * scale}
                row |= {key: round(value.item(), 5) for key, value in losses.items()}
                log.write(json.dumps(row) + "\n")
                log.flush()
                print(name, row, flush=True)
                logged_at = now
            if now - saved_at > SAVE_EVERY:
                save()
                saved_at = now
            if now - shown_at > SHOW_EVERY:
                show(averages)
                shown_at = now
    save()
    for number, handler in old.items():
        signal.signal(number, handler)
    return averages if step == steps else None
