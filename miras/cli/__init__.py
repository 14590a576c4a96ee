"""The ``miras`` command: look at the design space, plan a memory, hold a component to the laws.

What a user types is turned into objects by the parser, so that a wrong name or value ends in one sentence that says
which argument it was, and a bug of ours still ends in a traceback.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from miras.associative import AssociativeMemory
from miras.citations import FRAMEWORK, PAPERS, cite, named_in, url
from miras.cli._describe import GATE, claims, docstring, fields, gate, gates, summary
from miras.cli._presets import Preset, overview, present
from miras.cli._render import say, table
from miras.explain import explain
from miras.registry import NameClash, hint
from miras.spec import AXES, MirasSpec, refused

T = TypeVar("T")
Component = tuple[str, type[Any]]
"""An axis and a class registered on it."""

_SETTINGS = (*AXES, "chunk_size", "anchor_lag", "read", "step_bound")
"""Fields of a spec that are options of ``explain``."""
_ABSENT = object()
"""An option that was not given; None is a value of ``--step-bound``."""


class Command(NamedTuple):
    """A command that a package building on this one brings along.

    Attributes:
        help: what it does, in a few words.
        run: does it with the arguments that follow its name, and returns the exit code; imports what it needs then.
    """

    help: str
    run: Callable[[Sequence[str]], int | None]


def main(
    arguments: Sequence[str] | None = None,
    presets: Mapping[str, Preset] | None = None,
    commands: Mapping[str, Command] | None = None,
) -> int:
    """Runs the command on these arguments, those of the process if None, and returns its exit code.

    A package that builds on this one brings along ``presets``, published memories by name, and further ``commands`` by
    name, which parse their own arguments.
    """
    arguments, commands = sys.argv[1:] if arguments is None else arguments, commands or {}
    if arguments and arguments[0] in commands:
        return commands[arguments[0]].run(arguments[1:]) or 0
    parser = _parser(presets or {}, commands)
    args = parser.parse_args(arguments)
    try:
        return args.run(args) or 0
    except NameClash as error:  # two installed plugins are at odds
        parser.error(str(error))


def _parser(presets: Mapping[str, Preset], further: Mapping[str, Command]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("miras", description="Sequence layers as associative memories, on four axes.")
    parser.add_argument("--version", action="version", version=f"miras-memory {version('miras-memory')}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int | None], help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help.capitalize() + ".")
        sub.set_defaults(run=run, parser=sub)
        return sub

    sub = command("list", _list, "list the components of all axes, or of one")
    sub.add_argument("axis", nargs="?", metavar="AXIS", choices=list(AXES), help=", ".join(AXES))

    sub = command("show", _show, "show a component or a published memory: formula, fields, gates, claims, source")
    named = _argument(functools.partial(_named, presets))
    sub.add_argument("found", type=named, metavar="NAME", help="such as huber, or bias:l2")

    sub = command("explain", _explain, "explain how a memory is computed, and what it costs")
    known = _argument(functools.partial(_preset, presets))
    sub.add_argument("preset", type=known, nargs="?", metavar="PRESET", help="a published memory to begin with")
    sub.add_argument(
        "--spec", type=_argument(_mapping), default={}, metavar="FILE", help="a spec in JSON, to begin with"
    )
    either = 'a name, or JSON such as {"name": "huber", "per": "value"}'
    sub.set_defaults(**dict.fromkeys(_SETTINGS, _ABSENT))
    for axis in AXES:
        sub.add_argument(f"--{axis}", type=_argument(functools.partial(_built, axis)), metavar="X", help=either)
    sub.add_argument("--chunk-size", type=int, metavar="N", help="inner steps that share an anchor")
    sub.add_argument("--anchor-lag", type=int, metavar="N", help="tokens of a chunk after which the anchor also moves")
    sub.add_argument("--read", choices=["after", "previous", "anchor"], help="which weights a token reads")
    sub.add_argument("--step-bound", type=_argument(_bound), metavar="X", help="a number, or none")
    sub.add_argument("--dim", type=int, default=512, metavar="D", help="width of the layer (%(default)s)")
    sub.add_argument("--heads", type=int, default=8, metavar="H", help="number of heads (%(default)s)")

    sub = command("check", _check, "hold a component to the laws")
    where = "module:Class, or a registered one as in bias:huber"
    sub.add_argument("component", type=_argument(_imported), metavar="MODULE:CLASS", help=where)
    sub.add_argument(
        "--examples", type=_argument(_count), default=20, metavar="N", help="problems for every law (%(default)s)"
    )

    sub = command("cite", _cite, "print BibTeX for a component, a paper, or the library")
    cited = _argument(functools.partial(_cited, presets))
    sub.add_argument("papers", type=cited, nargs="?", metavar="NAME", help="such as muon or titans")

    if presets:
        sub = command("zoo", _zoo, "list the published memories and where they are on the four axes")
        matching = _argument(functools.partial(_matching, presets))
        sub.add_argument(
            "presets", type=matching, nargs="?", default=presets, metavar="PATTERN", help="such as '*delta*'"
        )

    command("refused", _refused, "list the pairs of components that do not combine, and why")
    for name, (help, _) in further.items():
        commands.add_parser(name, help=help)
    return parser


# commands ----------------------------------------------------------------------------------------


def _list(args: argparse.Namespace) -> None:
    for axis in [args.axis] if args.axis else AXES:
        classes = [AXES[axis][name] for name in AXES[axis]]
        say(f"{axis}: {len(classes)}", style="bold")
        table(["name", "what it is", "gates"], [(c.name, summary(c), ", ".join(gates(c))) for c in classes])


def _show(args: argparse.Namespace) -> None:
    preset, components = args.found
    if preset is not None:
        present(preset)
    for axis, cls in components:
        say(f"{axis} {cls.name}", style="bold")
        say(f"\n{docstring(cls)}\n")
        if rows := fields(cls):
            table(["field", "default", "type"], rows)
        if declared := gates(cls):
            table(["gate", *GATE], [(name, *gate(g)) for name, g in declared.items()])
        table(["claim", "with these defaults"], claims(cls, AXES[axis].base))
        say(f"source  {cls.__module__}:{cls.__qualname__}")
        for arxiv in named_in(docstring(cls)):
            say(f"paper   {PAPERS[arxiv].title + ', ' if arxiv in PAPERS else ''}{url(arxiv)}")
        say()


def _explain(args: argparse.Namespace) -> None:
    parser: argparse.ArgumentParser = args.parser
    if args.heads < 1 or args.dim < 1 or args.dim % args.heads:
        parser.error(
            f"argument --heads: {args.heads} heads do not divide a width of {args.dim}; change --dim or --heads"
        )
    given = {name: getattr(args, name) for name in _SETTINGS if getattr(args, name) is not _ABSENT}
    width = args.dim // args.heads
    try:
        begin = args.preset.spec.to_dict() if args.preset else {}
        spec = MirasSpec.from_dict(begin | args.spec | given)
        explanation = explain(AssociativeMemory(spec), width, width, args.heads, spec.algorithm.steps)
        say(f"{spec!r}\n\n{json.dumps(spec.to_dict())}\n\n{explanation}\n")
    except (KeyError, TypeError, ValueError) as error:  # the parts are sound, their combination is not
        parser.error(_message(error))
    owners = {name: axis for axis in AXES for name in getattr(getattr(spec, axis), "gates", {})}
    table(["gate", "of the", *GATE], [(name, owners[name], *gate(g)) for name, g in spec.gates.items()])


def _check(args: argparse.Namespace) -> int:
    try:
        from miras.testing import check
    except ModuleNotFoundError as error:
        raise SystemExit(f"miras: the laws need {error.name}; pip install 'miras-memory[test]'") from None
    report = check(args.component, examples=args.examples)
    say(repr(args.component), style="bold")
    table(["law", "status", "detail"], [(r.law, r.status, r.detail) for r in report.results])
    count = [r.status for r in report.results].count
    say(", ".join(f"{count(status)} {status}" for status in ("passed", "failed", "skipped")))
    return 0 if report.ok else 1


def _cite(args: argparse.Namespace) -> None:
    library = f"""\
@software{{miras_memory,
  title = {{miras-memory: sequence layers as associative memories}},
  author = {{{{The miras-memory authors}}}},
  version = {{{version("miras-memory")}}},
}}"""
    entries = [library, cite(FRAMEWORK)] if args.papers is None else map(cite, args.papers)
    say("\n\n".join(entries))


def _zoo(args: argparse.Namespace) -> None:
    overview(args.presets)


def _refused(args: argparse.Namespace) -> None:
    rows = refused()
    pairs = sum(len(AXES[a]) * len(AXES[b]) for a, b in combinations(AXES, 2))
    table(["this", "not with", "because"], rows)
    say(f"{len(rows)} of {pairs} pairs ({len(rows) / pairs:.1%})")


# what a user types -------------------------------------------------------------------------------


def _argument(parse: Callable[[str], T]) -> Callable[[str], T]:
    """The parser of an argument, whose errors argparse prints behind the argument's name."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise argparse.ArgumentTypeError(_message(error)) from error

    return convert


def _message(error: Exception) -> str:
    """What an error says; a KeyError puts quotes around it."""
    return str(error.args[0] if isinstance(error, KeyError) else error)


def _named(presets: Mapping[str, Preset], text: str) -> tuple[Preset | None, list[Component]]:
    """The preset and every component of that name; an axis in front chooses a component."""
    axis, colon, name = text.partition(":")
    if colon and axis in AXES:
        return None, [(axis, AXES[axis][name])]
    found = [(a, registry[text]) for a, registry in AXES.items() if text in registry]
    if found or text in presets:
        return presets.get(text), found
    names = {name for registry in AXES.values() for name in registry} | presets.keys()
    raise KeyError(f"no component named {text!r}{hint(text, names)}; 'miras list' names them all")


def _preset(presets: Mapping[str, Preset], text: str) -> Preset:
    if text not in presets:
        raise KeyError(
            f"no published memory named {text!r}{hint(text, presets)} (have: {', '.join(presets) or 'none'})"
        )
    return presets[text]


def _matching(presets: Mapping[str, Preset], pattern: str) -> dict[str, Preset]:
    found = {name: preset for name, preset in presets.items() if fnmatchcase(name, pattern)}
    if not found:
        raise KeyError(f"no published memory matches {pattern!r}{hint(pattern, presets)}")
    return found


def _built(axis: str, text: str) -> Any:
    return AXES[axis].build(_json(text) if text.lstrip().startswith("{") else text)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error


def _mapping(text: str) -> dict[str, Any]:
    mapping = _json(Path(text).read_text())
    if not isinstance(mapping, dict):
        raise ValueError(f"{text} holds a {type(mapping).__name__}, not an object as MirasSpec.to_dict makes it")
    return mapping


def _count(text: str) -> int:
    if (count := int(text)) < 1:
        raise ValueError(f"must be at least 1, got {count}")
    return count


def _bound(text: str) -> float | None:
    return None if text.lower() == "none" else float(text)


def _imported(text: str) -> Any:
    """An instance of a class that a user named, from the working directory or anywhere Python looks."""
    module, _, name = text.partition(":")
    if not (module and name):
        raise ValueError(f"pass module:Class, such as my_package.losses:Cauchy; got {text!r}")
    if module in AXES:
        return AXES[module].build(name)
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # theirs: an import inside their module
        raise ValueError(f"no module named {error.name!r} here or on Python's path") from error
    except AttributeError as error:
        raise ValueError(f"module {module!r} has no {name!r}") from error
    component = found() if isinstance(found, type) else found
    if not any(isinstance(component, registry.base) for registry in AXES.values()):
        bases = ", ".join(registry.base.__name__ for registry in AXES.values())
        raise TypeError(f"{text} is no component: derive from one of {bases}")
    return component


def _cited(presets: Mapping[str, Preset], text: str) -> list[str]:
    """The arXiv numbers behind a number, a paper's short name, a preset, or a component."""
    if text in PAPERS:
        return [text]
    if found := [arxiv for arxiv, paper in PAPERS.items() if paper.key == text]:
        return found
    preset, components = _named(presets, text)
    if preset is not None:
        return [preset.paper]
    return named_in(" ".join(docstring(cls) for _, cls in components)) or [FRAMEWORK]
