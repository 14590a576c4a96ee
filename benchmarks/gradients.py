"""How gradients of a small model grow with the text: `python -m benchmarks.gradients [--lengths 1024 2048 4096]`.

Models of two layers, two heads of 64 channels, at initialisation, one row of text each: the norm of the gradient of the mean
loss with respect to all parameters, for a norm of the memory that divides by no less than a thousandth or a tenth.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from benchmarks.books import CHANGES
from titans.data import shards
from titans.experiments import MEMORIES, MODELS, Scale, model
from titans.model import TitansLM
from titans.train import Data

NAMES = ("lmm", "mac", "yaad", "moneta", "memora")
EPS = (1e-6, 1e-2)


def norm(name: str, text: torch.Tensor, eps: float) -> float:
    """Of the gradient of the mean loss of a text."""
    sizes = {"dim": 128, "depth": 2, "heads": 2, "window": 256, "length": len(text)}
    rest: dict[str, Any] = {"batch": 1, "steps": 0, "lr": 0.0, "seeds": 1, "examples": 0, "factor": 1}
    fields = MEMORIES[MODELS[name][1]] | CHANGES.get(name, {})
    architecture = fields["architecture"]
    architecture = {"name": architecture} if isinstance(architecture, str) else architecture
    torch.manual_seed(0)
    built = TitansLM(
        model(name, Scale(**sizes, **rest), **fields | {"architecture": architecture | {"eps": eps}}).build(256)
    )
    built(text[None], return_loss=True).backward()
    return torch.stack([p.grad.norm() for p in built.parameters() if p.grad is not None]).norm().item()


def main() -> None:
    """Prints a line for every model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", default="stdlib")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--models", nargs="+", default=NAMES, choices=NAMES)
    args = parser.parse_args()
    tokens = shards(Data(source=args.text), "train")
    print("| model | eps | " + " | ".join(f"{n} tokens" for n in args.lengths) + " |")
    for name in args.models:
        for eps in EPS:
            norms = [norm(name, torch.from_numpy(tokens.read(0, n)), eps) for n in args.lengths]
            print(f"| {name} | {eps:g} | " + " | ".join(f"{x:.2g}" for x in norms) + " |", flush=True)


if __name__ == "__main__":
    main()
