"""Text to numbers and back: bytes, or a tokenizer file of Hugging Face."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np

_ENDS = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "[SEP]")


class Tokenizer(Protocol):
    """Bytes to tokens and back.

    Attributes:
        name: which one it is, and which version of it.
        vocabulary: number of tokens; each is less than it.
        end: the token after a document; None if the vocabulary has none.
    """

    name: str
    vocabulary: int
    end: int | None

    def encode(self, text: bytes) -> np.ndarray:
        """Tokens, in the smallest unsigned type that holds the vocabulary."""
        ...

    def decode(self, tokens: list[int]) -> bytes:
        """The text of tokens."""
        ...


class Bytes:
    """The bytes themselves; NUL, which no text contains, ends a document.

    Example:
        >>> Bytes().decode(Bytes().encode("é".encode()).tolist()).decode()
        'é'
    """

    def __init__(self) -> None:
        self.name, self.vocabulary = "bytes", 256
        self.end: int | None = 0

    def encode(self, text: bytes) -> np.ndarray:
        """One token a byte."""
        return np.frombuffer(text, dtype=np.uint8)

    def decode(self, tokens: list[int]) -> bytes:
        """One byte a token."""
        return bytes(tokens)


class FromFile:
    """A ``tokenizer.json``, read by the package tokenizers."""

    def __init__(self, path: Path):
        try:
            from tokenizers import Tokenizer as Loaded
        except ImportError:
            raise ValueError("a tokenizer file needs the package tokenizers; pip install tokenizers") from None
        text = path.read_bytes()
        self._inner = Loaded.from_str(text.decode())
        self._inner.no_truncation()  # what a file asks for is meant for batches of a model
        self._inner.no_padding()
        self.name = f"{path.name}-{hashlib.sha256(text).hexdigest()[:12]}"
        self.vocabulary = 1 + max(self._inner.get_vocab().values())  # numbers may be left out between them
        known = [self._inner.token_to_id(token) for token in _ENDS]
        self.end: int | None = next((token for token in known if token is not None), None)
        self._dtype = np.uint16 if self.vocabulary <= 2**16 else np.uint32

    def encode(self, text: bytes) -> np.ndarray:
        """Tokens without special ones; bytes that are not UTF-8 are replaced."""
        ids = self._inner.encode(text.decode(errors="replace"), add_special_tokens=False).ids
        return np.array(ids, dtype=self._dtype)

    def decode(self, tokens: list[int]) -> bytes:
        """UTF-8."""
        return self._inner.decode(tokens).encode()


def tokenizer(name: str) -> Tokenizer:
    """``bytes``, or the tokenizer in a file."""
    if name == "bytes":
        return Bytes()
    if not Path(name).is_file():
        raise ValueError(f"tokenizer must be 'bytes' or the path of a tokenizer.json, got {name!r}")
    return FromFile(Path(name))
