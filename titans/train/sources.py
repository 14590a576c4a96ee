"""What a run trains on, and what it is judged on."""

from __future__ import annotations

from titans.data import Data, Source, open_source
from titans.train.parallel import World


def sources(data: Data, ranks: World) -> tuple[Source, Source | None]:
    """Training and held-out data; the first rank writes the tokens, the others find them."""
    if not ranks.is_first:
        ranks.wait()
    source = open_source(data)
    try:
        valid = open_source(data, "valid")
        if valid.vocabulary > source.vocabulary:
            raise ValueError(
                f"it has {valid.vocabulary} tokens, the model {source.vocabulary}; pass another --data.valid"
            )
    except ValueError as error:
        valid = None
        if ranks.is_first:
            print(f"warning: no evaluation on held-out data: {error}", flush=True)
    if ranks.is_first:
        ranks.wait()
    return source, valid
