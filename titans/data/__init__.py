"""Where tokens come from: text, token shards, batches by step."""

from titans.data._base import IGNORED, Batch, Source, ahead, inputs, labels, take
from titans.data._documents import Collection, collection
from titans.data._open import FACTORIES, Data, open_source, shards
from titans.data._orders import Packed, Shuffled, Stream
from titans.data._shards import Shards, write
from titans.data._tokenizer import Bytes, FromFile, Tokenizer, tokenizer

__all__ = [
    "FACTORIES",
    "IGNORED",
    "Batch",
    "Bytes",
    "Collection",
    "Data",
    "FromFile",
    "Packed",
    "Shards",
    "Shuffled",
    "Source",
    "Stream",
    "Tokenizer",
    "ahead",
    "collection",
    "inputs",
    "labels",
    "open_source",
    "shards",
    "take",
    "tokenizer",
    "write",
]
