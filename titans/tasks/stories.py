"""Stories of people, places and things, with a question that has one answer: a small world in the manner of bAbI's tasks 1-5.

Written from the description of the tasks (arXiv 1502.05698 §3); names, places and wording are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

PEOPLE = ("Anna", "Boris", "Clara", "Felix", "Ivo", "Nora")
PLACES = ("attic", "cellar", "garden", "hall", "kitchen", "library", "porch", "stable")
THINGS = ("basket", "candle", "kettle", "lantern")
SIDES = ("north", "south", "east", "west")
GO = ("went", "moved", "walked", "travelled")
TAKE = ("took", "grabbed", "picked up")
DROP = ("dropped", "left", "put down")


class Story(NamedTuple):
    """Facts in their order, a question about them, and its one-word answer."""

    facts: list[str]
    question: str
    answer: str


class World:
    """Who is where and holds what; every act is told in a sentence."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.facts: list[str] = []
        self.where: dict[str, str] = {}
        self.holder: dict[str, str] = {}
        self.lies = {thing: self.one(PLACES) for thing in THINGS}
        self.been: dict[str, list[str]] = {thing: [] for thing in THINGS}
        """Where each thing is known to have been, without repetitions in a row."""
        self.gifts: list[tuple[str, str, str]] = []

    def one(self, of: tuple[str, ...] | list[str]) -> str:
        """Any of them."""
        return of[int(self.rng.integers(len(of)))]

    def go(self) -> None:
        """Somebody goes somewhere else, with all they hold."""
        person = self.one(PEOPLE)
        place = self.one([p for p in PLACES if p != self.where.get(person)])
        self.where[person] = place
        self.facts.append(f"{person} {self.one(GO)} to the {place}.")
        for thing, holder in self.holder.items():
            if holder == person:
                self.been[thing].append(place)

    def take(self) -> None:
        """Somebody takes a thing that lies where they are, or goes if nobody can."""
        able = [
            f"{p} {t}" for p, at in self.where.items() for t in THINGS if t not in self.holder and self.lies[t] == at
        ]
        if not able:
            return self.go()
        person, thing = self.one(able).split()
        self.holder[thing] = person
        if self.been[thing][-1:] != [self.where[person]]:
            self.been[thing].append(self.where[person])
        self.facts.append(f"{person} {self.one(TAKE)} the {thing}.")

    def drop(self) -> None:
        """Somebody leaves a thing where they are, or takes one if nobody holds any."""
        if not self.holder:
            return self.take()
        thing = self.one(list(self.holder))
        person = self.holder.pop(thing)
        self.lies[thing] = self.where[person]
        self.facts.append(f"{person} {self.one(DROP)} the {thing}.")

    def give(self) -> None:
        """Somebody gives a thing to somebody, or takes one if nobody holds any."""
        if not self.holder:
            return self.take()
        thing = self.one(list(self.holder))
        giver = self.holder[thing]
        receiver = self.one(
            [p for p in PEOPLE if p != giver and self.where.get(p, self.where[giver]) == self.where[giver]] or [giver]
        )
        if receiver == giver:
            return self.go()
        self.where[receiver], self.holder[thing] = self.where[giver], receiver
        self.gifts.append((giver, thing, receiver))
        self.facts.append(f"{giver} gave the {thing} to {receiver}.")

    def live(self, count: int, acts: tuple[Callable[[World], None], ...]) -> World:
        """Acts until so many facts are told."""
        while len(self.facts) < count:
            acts[int(self.rng.integers(len(acts)))](self)
        return self


def where_is_person(world: World, count: int) -> Story | None:
    """One supporting fact (qa1)."""
    world.live(count, (World.go,))
    person = world.one(list(world.where))
    return Story(world.facts, f"Where is {person}?", world.where[person])


def where_is_thing(world: World, count: int) -> Story | None:
    """Two supporting facts (qa2): who has it, and where they are."""
    world.live(count, (World.go, World.take, World.take, World.drop))
    known = [t for t, places in world.been.items() if places]
    if not known:
        return None
    thing = world.one(known)
    return Story(world.facts, f"Where is the {thing}?", world.been[thing][-1])


def where_was_thing(world: World, count: int) -> Story | None:
    """Three supporting facts (qa3): where it was before it was where it is now."""
    world.live(count, (World.go, World.go, World.take, World.take, World.drop))
    known = [t for t, places in world.been.items() if len(places) > 1]
    if not known:
        return None
    thing = world.one(known)
    before, now = world.been[thing][-2:]
    return Story(world.facts, f"Where was the {thing} before the {now}?", before)


def what_is_beside(world: World, count: int) -> Story | None:
    """Relations with two arguments (qa4): rooms around one room."""
    if not 2 <= count <= len(SIDES):
        raise ValueError(f"qa4 tells between 2 and {len(SIDES)} facts, got {count}")
    middle, *around = world.rng.permutation(np.array(PLACES))[: count + 1].tolist()
    sides = world.rng.permutation(np.array(SIDES))[:count].tolist()
    facts = [f"The {room} is {side} of the {middle}." for room, side in zip(around, sides, strict=True)]
    i = int(world.rng.integers(count))
    if world.rng.integers(2):
        return Story(facts, f"What is {sides[i]} of the {middle}?", around[i])
    return Story(facts, f"What is the {around[i]} {sides[i]} of?", middle)


def who_gave_what(world: World, count: int) -> Story | None:
    """Relations with three arguments (qa5): the latest gift of a thing."""
    world.live(count, (World.go, World.take, World.give, World.give))
    if not world.gifts:
        return None
    thing = world.one([t for _, t, _ in world.gifts])
    giver, _, receiver = next(g for g in reversed(world.gifts) if g[1] == thing)
    asked = world.one(["gave", "received"])
    return Story(world.facts, f"Who last {asked} the {thing}?", giver if asked == "gave" else receiver)


KINDS: dict[str, tuple[Callable[[World, int], Story | None], int, tuple[str, ...]]] = {
    "qa1": (where_is_person, 6, PLACES),
    "qa2": (where_is_thing, 10, PLACES),
    "qa3": (where_was_thing, 14, PLACES),
    "qa4": (what_is_beside, 2, PLACES),
    "qa5": (who_gave_what, 10, PEOPLE),
}
"""Every kind of story: how it is told, its usual number of facts, and the possible answers."""

LEAST = {"qa1": 1, "qa2": 2, "qa3": 3, "qa4": 2, "qa5": 3}
"""Facts without which a kind leaves nothing to ask."""


def story(kind: str, facts: int, rng: np.random.Generator) -> Story:
    """A story; one that leaves nothing to ask is told anew."""
    tell = KINDS[kind][0]
    while (told := tell(World(rng), facts)) is None:
        pass
    return told
