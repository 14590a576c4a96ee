"""Mutants that change no number, and why. All others that survive are holes in the suite."""

EQUIVALENT: dict[str, str] = {
    r"state\.phase\[0\].* -> .*state\.phase\[-1\]": "a batch is in one phase",
    r"^products\.[\w.]+: (if )?\w+\.shape\[-1\] <= \w+\.shape\[-1\]": "which side is scaled changes the cost only",
    r"^products\._Read\.forward: slots is not None and of_slots is not None": "both are given or neither",
    r"^exact\._Rows\.pairs: self\.z is not None and self\.z_row": "both are given or neither",
    r"^exact\._tiles: .* and decayed -> spec\.read != 'after' and z is not None": "repeats what is so without decay",
    r"^picard\.(_start|_nothing): ": "the sweeps have one fixed point, wherever they start",
    r"^picard\._Implicit\.backward: (break|done|_distance)": "sweeps after the last that moves anything change nothing",
    r"^chunked\.weigh: by\.shape\[-2:\] == \(1, 1\)": "the branch for channels takes one number too",
    r"^problem\.algorithm_gates: t if g in own and g != 'lr'": "a token's learning rate is per head",
    r"^problem\.initial_state: .*like\.clone\(\)": "states are never written in place",
    r"^plan\.fused: not algorithm\.direction_is_identity": "the factored path refuses it too",
    r"^picard\._distance: .*default=1\.0": "there is always a weight",
    r"^(exact\._tiles|fused\._mixed): .*(lr\.mean\(-1\) \*|keys\.shape\[-1\] <= errors)": "one number, or the cost only",
    r"^plan\.: 64 -> |^plan\.plan: .*TILE if": "a tile is a matter of cost",
    r"^weights\.: 1e?0* -> ": "still far beyond any gradient that is right",
    r"^problem\.bounded: torch\.full_like\(x\.q\[\.\.\., 0\], gain\)": "only its shape counts",
    r"\.vjp\(answer, anchor\)\[:2\]": "it returns two",
}
"""Regular expressions of fingerprints (``module.function: original -> mutated``)."""
