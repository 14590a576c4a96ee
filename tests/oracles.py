"""The shortest program that solves each task: what its answers are, from its inputs alone."""

from __future__ import annotations

import re
from itertools import permutations
from typing import Any

import numpy as np

from titans.tasks import Task


def text(inputs: np.ndarray) -> str:
    return bytes(inputs.astype(np.uint8)).decode()


def mqar(task: Task, x: Any, asked: list[int]) -> list[int]:
    return [x[x.index(x[i]) + 1] for i in asked]


def corrupted_keys(task: Any, x: Any, asked: list[int]) -> list[int]:
    step = task.width + 1
    pairs = [x[i : i + step] for i in range(0, step * task.pairs, step)]
    words = [np.array(x[i + 1 - task.width : i + 1]) for i in asked]
    return [min(pairs, key=lambda p: (np.array(p[:-1]) != word).sum())[-1] for word in words]


def copying(task: Any, x: Any, asked: list[int]) -> list[int]:
    return [t for t in x[: asked[0]] if 1 < t < 2 + task.symbols]


def state_tracking(task: Any, x: Any, asked: list[int]) -> list[int]:
    n = {"parity": 2, "s3": 3, "a5": 5}[task.group]
    matrices = [np.eye(n)[list(p)] for p in permutations(range(n))]
    group = [m for m in matrices if task.group != "a5" or np.linalg.det(m) > 0]
    state, answers = np.eye(n), []
    for letter in x:
        state = state @ group[letter]
        answers.append(next(i for i, m in enumerate(group) if (m == state).all()))
    return answers


def mad_fuzzy_recall(task: Task, x: Any, asked: list[int]) -> list[int]:
    words, begins = [[]], [0]
    for i, t in enumerate(x):  # every second word is a value
        words[-1].append(t)
        if t == 0:
            words.append([])
            begins.append(i + 1)
    answers = []
    for i in asked:
        w = max(n for n, b in enumerate(begins) if b <= i + 1)
        answers.append(words[words.index(words[w - 1]) + 1][i + 1 - begins[w]])
    return answers


def mad_compression(task: Any, x: Any, asked: list[int]) -> list[int]:
    return [x[x[i] - 1 - task.symbols] for i in asked]


def mad_memorization(task: Any, x: Any, asked: list[int]) -> list[int]:
    seen = {}
    for index in range(400):  # it is learned from training examples, not from the context
        inputs, labels = task.example(0, index)
        seen |= {inputs[i - 1]: labels[i] for i in np.flatnonzero(labels >= 0)}
    return [seen[x[i - 1]] for i in asked]


def needle(task: Task, x: Any, asked: list[int]) -> list[int]:
    line = text(np.array(x))
    question = line[line.rindex("The special") :].split(" is ")[0] + " is "
    answer = line.split(question, 1)[1].split(". ", 1)[0]
    return list(answer.encode()) * (len(asked) // len(answer))


GO, TAKE, DROP = "went|moved|walked|travelled", "took|grabbed|picked up", "dropped|left|put down"


def babilong(task: Any, x: Any, asked: list[int]) -> list[int]:
    line = text(np.array(x))
    story, question = line[: asked[0]].split("\n")
    return list(f"{ASK[task.kind](story, question)}.".encode())


def lives(story: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Where people are, and where things have been."""
    where, holder, been = {}, {}, {}
    for who, go, take, what in re.findall(rf"(\w+) (?:({GO}) to|({TAKE})|(?:{DROP})) the (\w+)\.", story):
        if go:
            where[who] = what
            moved = [t for t, h in holder.items() if h == who]
        elif take:
            holder[what], moved = who, [what]
        else:
            moved = []
            holder.pop(what)
        for thing in moved:
            if been.setdefault(thing, [])[-1:] != [where[who]]:
                been[thing].append(where[who])
    return where, been


def gift(story: str, question: str) -> str:
    _, _, act, _, thing = question.rstrip("? ").split()
    giver, receiver = re.findall(rf"(\w+) gave the {thing} to (\w+)\.", story)[-1]
    return giver if act == "gave" else receiver


def beside(story: str, question: str) -> str:
    [(room, side)] = re.findall(r"What is (?:the (\w+) )?(\w+)", question)
    middle = question.rstrip("? ").split()[-1]
    return re.findall(rf"{room} is {side} of the (\w+)" if room else rf"(\w+) is {side} of the {middle}", story)[0]


ASK = {
    "qa1": lambda story, q: lives(story)[0][q.split()[2].rstrip("?")],
    "qa2": lambda story, q: lives(story)[1][q.split()[3].rstrip("?")][-1],
    "qa3": lambda story, q: lives(story)[1][q.split()[3]][-2],
    "qa4": beside,
    "qa5": gift,
}

ORACLES: dict[str, Any] = {
    "mqar": mqar,
    "corrupted_keys": corrupted_keys,
    "selective_copying": copying,
    "state_tracking": state_tracking,
    "mad_recall": mqar,
    "mad_noisy_recall": mqar,
    "mad_fuzzy_recall": mad_fuzzy_recall,
    "mad_selective_copying": copying,
    "mad_compression": mad_compression,
    "mad_memorization": mad_memorization,
    "passkey": needle,
    "s_niah_1": needle,
    "s_niah_2": needle,
    "s_niah_3": needle,
    "babilong": babilong,
}
