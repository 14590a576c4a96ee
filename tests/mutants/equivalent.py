"""Mutants that change no number, and why. All others that survive are holes in the suite."""

NARROW = r"\w+\.shape\[-1\] <= \w+\.shape\[-1\]"

EQUIVALENT: dict[str, str] = {
    r"state\.phase\[0\].* -> .*state\.phase\[-1\]": "a batch is in one phase",
    rf"^(products\.[\w.]+|fused\._mixed): (if )?{NARROW}": "which side is scaled changes the cost only",
    r"^products\._Read\.forward: slots is not None and of_slots is not None -> (?!slots is None)": "both or neither",
    r"^exact\._Rows\.pairs: self\.z is not None and self\.z_row is not None -> self": "both are given or neither",
    r"^exact\._tiles: .* and decayed -> spec\.read != 'after' and z is not None$": "repeats what is so without decay",
    r"^exact\._tiles: \(lr\.mean\(-1\) .* -> \(lr\.sum\(-1\)": "where the step counts, the rate is per head",
    r"^picard\.(_start|_nothing): .*(=True|zeros).* -> .*(=False|ones)": "sweeps end at one point wherever they start",
    r"^picard\._Implicit\.backward: (break|.*_distance)": "sweeps after the last that moves anything change nothing",
    r"^picard\._distance: .*default=1\.0": "there is always a weight",
    r"^segment\.weigh: by\.shape\[-2:\] == \(1, 1\) -> .* == ": "the branch for channels takes one number too",
    r"^segment\.segments: .* if t\.dim\(\) == 3 -> .* in gates\.items\(\)$": "no coefficient asks for the others",
    r"^problem\.algorithm_gates: t if .* -> t if g in own else mean_channel": "a token's learning rate is per head",
    r"^problem\.initial_state: .*like\.clone\(\).* -> .*like[,}]": "states are never written in place",
    r"^problem\.answers: y if n == 1 else .* -> (y if n == 0 else )?y\[": "every answer of one step a token",
    r"^problem\.bounded: torch\.full_like\(x\.q\[\.\.\., 0\], gain\) -> .*\[\.\.\., ": "only its shape counts",
    r"^plan\.fused: .* -> algorithm\.changes_error": "the factored path refuses a direction too",
    r"^plan\.: 64 -> |^plan\.plan: TILE if .* -> spec\.chunk_size$": "a tile is a matter of cost",
    r"^weights\.: 1e8|^weights\.: 100000000": "as far beyond any gradient that is right",
    r"^weights\.Decayed\._sides: .*:1, :1\].* -> .*:1, (:|:2)\]": "only its shape counts, and ends as one column",
    r"^weights\.gate_on: gate\.dim\(\) == 4 and weight\.kind .* -> weight": "a gate per channel has channels",
    r"^filters\.channel_\w+: .*\.shape\[-2\].* -> .*\.shape\[2\]": "they have four dimensions",
    r"^fused\._forward: zip\(rows, seen, .* -> zip\(seen, rows,": "they are multiplied with one another",
    r"^reference\._gradients: .* if algorithm\.implicit else prediction -> ": "only an implicit error looks at the step",
    r"^fused\._forward: out\.addcmul_\(row, s\) -> ": "factors are multiplied in either order",
    r"^reference\.: 1e-30 -> ": "under the root of norms that are zero or far above it",
    r"\.vjp\(answer, anchor\)\[:2\] -> .*\[:3\]|vjp\(answer, anchor\)$": "it returns two",
}
"""Regular expressions of fingerprints (``module.function: original -> mutated``)."""
