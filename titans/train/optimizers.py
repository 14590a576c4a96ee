"""Optimizers by name, with the parameters in groups."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from miras.registry import hint
from titans.train.config import Optimizer, Options

REFUSED = {
    "LBFGS": "calls the model several times a step",
    "SparseAdam": "takes sparse gradients only",
    "Adahessian": "needs second derivatives of the whole model",
    "Lookahead": "wraps another optimizer without the methods of one: it has no state to save",
    "PID": "does not keep the first gradient, so that its derivative term is wrong in the second step",
    "SGDW": "subtracts lr * weight_decay from every weight instead of lr * weight_decay * weight",
    "Shampoo": "preconditions with -1/2 instead of -1/4 powers, from gradients that are already preconditioned",
}
"""Optimizers that do not do what their name says, or not in a loop such as ours, and why."""

WHOLE_ONLY = ("Adafactor", "NovoGrad")
"""Optimizers that need whole matrices, and fail on sharded ones."""

USUAL: dict[str, Options] = {
    "AdamW": {"betas": (0.9, 0.95)},
    "Adam": {"betas": (0.9, 0.95)},
    "Muon": {"adjust_lr_fn": "match_rms_adamw"},
}
"""Keyword arguments unless others are given; Muon's makes the learning rate of AdamW fit (arXiv 2502.16982)."""


def optimizers(model: nn.Module, config: Optimizer, sharded: bool = False) -> list[torch.optim.Optimizer]:
    """One optimizer; for ``muon`` also AdamW for what is no hidden matrix.

    Args:
        model: whose parameters they move.
        config: which one, and how.
        sharded: whether the parameters are shards (FSDP2).

    Raises:
        ValueError: for an unknown or faulty optimizer, an option it lacks, or a pattern that matches nothing.
    """
    cls = _named(config.name)
    if sharded and cls.__name__ in WHOLE_ONLY:
        raise ValueError(f"{cls.__name__} needs whole matrices; pass --system.parallel ddp, or another optimizer")
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    unused = [g for g in config.groups if not any(fnmatchcase(name, g) for name in named)]
    if unused:
        raise ValueError(f"optimizer.groups: no parameter matches {unused[0]!r}, as {next(iter(named))!r} might")
    matrices = set(_matrices(model))
    if cls.__name__ != "Muon":
        return [_built(cls, named, matrices, config)]
    hidden = {n: p for n, p in named.items() if n in matrices}
    rest = {n: p for n, p in named.items() if n not in matrices}
    adamw = Optimizer(name="adamw", lr=config.lr, weight_decay=config.weight_decay, groups=config.groups)
    return [_built(cls, hidden, matrices, config), _built(torch.optim.AdamW, rest, matrices, adamw)]


def names(optimizer: torch.optim.Optimizer, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters an optimizer moves, by name."""
    by_id = {id(p): name for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        for p in group["params"]:
            yield by_id[id(p)], p


def _named(name: str) -> Callable[..., torch.optim.Optimizer]:
    known = {n.lower(): cls for n, cls in _classes()}
    if name.lower() not in known:
        raise ValueError(f"no optimizer named {name!r}{hint(name.lower(), known)} (have: {', '.join(sorted(known))})")
    cls = known[name.lower()]
    if cls.__name__ in REFUSED:
        raise ValueError(f"{cls.__name__} of {cls.__module__.partition('.')[0]} {REFUSED[cls.__name__]}; take another")
    return cls


def _classes() -> Iterator[tuple[str, Any]]:
    """All optimizers by name; where two packages have one, that of torch comes last and counts."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch_optimizer
    except ImportError:
        packages: tuple[Any, ...] = (torch.optim,)
    else:
        packages = (torch_optimizer, torch.optim)
    for package in packages:
        for name, cls in vars(package).items():
            if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer:
                yield name, cls


def _matrices(model: nn.Module) -> Iterator[str]:
    """Weights of linear maps in the middle of the model: what decays, and what Muon moves."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".gates." not in name and not name.endswith("head"):
            yield f"{name}.weight"


def _built(
    cls: Callable[..., torch.optim.Optimizer], named: dict[str, Any], matrices: set[str], config: Optimizer
) -> torch.optim.Optimizer:
    accepted = inspect.signature(cls).parameters
    options = {n: tuple(v) if isinstance(v, list) else v for n, v in config.options.items()}
    if "weight_decay" in options:  # every group has its own, which would win
        raise ValueError("optimizer.options cannot set weight_decay; pass --optimizer.weight-decay, or groups")
    mine = [group for pattern, group in config.groups.items() if any(fnmatchcase(name, pattern) for name in named)]
    for name in [*options, *(n for group in mine for n in group)]:
        if name not in accepted:
            raise ValueError(f"{cls.__name__} has no option {name!r}{hint(name, accepted)}")
    decay = config.weight_decay
    if decay and "weight_decay" not in accepted:
        raise ValueError(f"{cls.__name__} has no weight decay; pass --optimizer.weight-decay 0")
    usual = USUAL.get(cls.__name__, {}) | {"lr": config.lr} | options
    groups: dict[str, Options] = {}
    for name, p in named.items():
        own: Options = {"weight_decay": decay if name in matrices else 0.0} if "weight_decay" in accepted else {}
        for pattern, changes in config.groups.items():
            if fnmatchcase(name, pattern):
                own |= changes
        groups.setdefault(repr(sorted(own.items())), {"params": [], **own})["params"].append(p)
    with warnings.catch_warnings():  # of optimizers that are older than the torch they run on
        warnings.simplefilter("ignore")
        built = cls(list(groups.values()), **usual)
    for group in built.param_groups:
        group["peak"] = group["lr"]
    return built
