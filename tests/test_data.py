"""Text to batches: every token once, in an order that the step alone decides."""

import gzip
import json
import lzma
import random
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from titans import TitansLM, preset
from titans.data import (
    IGNORED,
    Bytes,
    Data,
    FromFile,
    Packed,
    Shards,
    Shuffled,
    Stream,
    ahead,
    collection,
    inputs,
    labels,
    open_source,
    shards,
    take,
    tokenizer,
    write,
)
from titans.data._documents import split_of


@pytest.fixture(scope="module")
def documents() -> list[bytes]:
    generator = np.random.default_rng(0)
    return [bytes(generator.integers(1, 256, size=n, dtype=np.uint8)) for n in generator.integers(1, 90, size=60)]


@pytest.fixture(scope="module")
def tokens(documents: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Shards:
    folder = tmp_path_factory.mktemp("tokens") / "shards"
    write(folder, documents, Bytes(), shard=100)
    return Shards(folder)


def row(tokens: Shards, start: int, length: int) -> list[int]:
    return tokens.read(start, start + length + 1).tolist()


# shards ------------------------------------------------------------------------------------------


def test_shards_are_the_text(documents: list[bytes], tokens: Shards):
    text = b"".join(d + b"\0" for d in documents)
    assert bytes(tokens.read(0, len(tokens)).tolist()) == text
    assert tokens.read(95, 310).tolist() == list(text[95:310]) and tokens.read(5, 5).tolist() == []
    assert [text[s:][: len(d)] for s, d in zip(tokens.starts, documents, strict=True)] == documents
    assert tokens.bytes_per_token == 1.0


def test_damaged_shards_are_refused(documents: list[bytes], tmp_path: Path):
    write(tmp_path / "s", documents, Bytes(), shard=1000)
    with (tmp_path / "s" / "tokens-00000.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match="does not have the 1000 bytes its manifest says"):
        Shards(tmp_path / "s")
    with pytest.raises(ValueError, match="holds no token shards"):
        Shards(tmp_path)


def test_two_that_write_the_same_do_not_meet(documents: list[bytes], tmp_path: Path):
    def slowly() -> Iterator[bytes]:
        yield from documents[:30]
        write(tmp_path / "s", documents, Bytes(), shard=100)  # another process, from beginning to end
        yield from documents[30:]

    write(tmp_path / "s", slowly(), Bytes(), shard=100)
    assert len(Shards(tmp_path / "s")) == sum(len(d) + 1 for d in documents)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_texts_that_break_off_leave_nothing(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"body": "two"}\n')
    data = Data(source=f"jsonl:{tmp_path / 'rows.jsonl'}", cache=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"rows\.jsonl:2 has no text"):
        shards(data)
    assert list((tmp_path / "cache").iterdir()) == []


def test_others_may_read_shards_as_any_new_folder(documents: list[bytes], tmp_path: Path):
    write(tmp_path / "s", documents, Bytes())
    (tmp_path / "any").mkdir()
    assert (tmp_path / "s").stat().st_mode == (tmp_path / "any").stat().st_mode


# orders ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [Shuffled, Stream, Packed])
def test_a_step_is_a_batch(tokens: Shards, order: type):
    """Whatever was asked before, ahead of time or not."""
    source, other = order(tokens, 3, 16, 1), order(tokens, 3, 16, 1)
    with ahead(source, 0, 9) as made:
        forward = list(made)
    for step in (8, 2, 5):
        for key, value in other.batch(step).items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(forward[step][key]))


def test_shuffled_rows_are_all_rows_once(tokens: Shards):
    source = Shuffled(tokens, 2, 16, 1)
    steps = source.epoch // 2
    starts = torch.cat([source.batch(step)["ids"] for step in range(steps)])
    assert sorted(starts.tolist()) == [16 * n for n in sorted((starts // 16).tolist())]
    assert len(set(starts.tolist())) == 2 * steps
    assert source.batch(3)["tokens"].tolist() == [row(tokens, s, 16) for s in source.batch(3)["ids"].tolist()]
    assert Shuffled(tokens, 2, 16, 2).batch(0)["ids"].tolist() != source.batch(0)["ids"].tolist()
    late = torch.cat([source.batch(step)["ids"] for step in range(10 * steps, 11 * steps)])
    assert int(late.max()) + 17 <= len(tokens) and int(late.min()) >= 0


def test_streams_continue(tokens: Shards):
    source = Stream(tokens, 3, 16)
    first, second = source.batch(0), source.batch(1)
    assert not first["continues"] and second["continues"] and not source.batch(source.steps)["continues"]
    assert first["tokens"][:, -1].tolist() == second["tokens"][:, 0].tolist()
    with pytest.raises(ValueError, match="1000 rows of 16 tokens need 16001"):
        Stream(tokens, 1000, 16)
    with pytest.raises(ValueError, match="a row needs 100001 tokens"):
        Shuffled(tokens, 1, 100_000)


def test_packed_rows_are_whole_documents_in_some_order(documents: list[bytes], tokens: Shards):
    source = Packed(tokens, 2, 16, 1)
    rows = torch.cat([source.batch(step)["tokens"][:, :-1].flatten() for step in range(source.epoch // 2)])
    seen = bytes(rows.tolist()).split(b"\0")[:-1]
    assert len(seen) > 50 and set(seen) <= set(documents)
    cuts = [source.batch(step)["cu_seqlens"] for step in range(source.epoch // 2)]
    flat = [source.batch(step)["tokens"][:, :-1].flatten() for step in range(source.epoch // 2)]
    for cut, row_ in zip(cuts, flat, strict=True):
        assert cut[0] == 0 and cut[-1] == 32 and 16 in cut.tolist() and bool((cut.diff() > 0).all())
        inner = [c for c in cut[1:-1].tolist() if c % 16]
        assert all(int(row_[c - 1]) == 0 for c in inner)


# batches -----------------------------------------------------------------------------------------


def test_labels():
    tokens = torch.arange(10).view(2, 5)
    assert labels({"tokens": tokens}).tolist() == [[1, 2, 3, 4], [6, 7, 8, 9]]
    mask = torch.tensor([[True] * 5, [False, False, True, True, True]])
    assert labels({"tokens": tokens, "mask": mask}).tolist()[1] == [IGNORED, IGNORED, 8, 9]
    cut = torch.tensor([0, 2, 4, 8])
    assert labels({"tokens": tokens, "cu_seqlens": cut}).tolist() == [[1, IGNORED, 3, 4], [6, 7, 8, 9]]
    loss_mask = torch.zeros(2, 4, dtype=torch.bool)
    assert bool((labels({"tokens": tokens, "loss_mask": loss_mask}) == IGNORED).all())


@given(rows=st.integers(1, 4), start=st.integers(0, 3), step=st.integers(0, 5))
def test_parts_of_a_packed_batch(tokens: Shards, rows: int, start: int, step: int):
    batch = Packed(tokens, 4, 16, 1).batch(step)
    part = range(start, min(4, start + rows))
    if not part:
        return
    mine = take(batch, part)
    assert torch.equal(labels(mine), labels(batch)[start : part.stop])
    assert mine["cu_seqlens"][-1] == 16 * len(part)
    read, mask, target = inputs(mine)
    assert mask is None or torch.equal(read[mask], mine["tokens"][:, :-1].flatten())
    assert torch.equal(target[target != IGNORED], labels(mine)[labels(mine) != IGNORED])


def test_packed_documents_do_not_see_each_other(tokens: Shards):
    """The loss of a packed batch is that of its documents one by one."""
    model = TitansLM(preset("tiny", "mag", dim=16, layers=("mag",), window=8))
    batch = Packed(tokens, 2, 16, 1).batch(1)
    read, mask, target = inputs(batch)
    with torch.no_grad():
        together = model(read, mask=mask, labels=target, return_loss=True)
        cut, flat, wanted = batch["cu_seqlens"].tolist(), batch["tokens"][:, :-1].flatten(), labels(batch).flatten()
        total, count = 0.0, int((wanted != IGNORED).sum())
        for a, b in pairwise(cut):
            n = int((wanted[a:b] != IGNORED).sum())
            total += n * float(model(flat[None, a:b], labels=wanted[None, a:b], return_loss=True)) if n else 0.0
    assert float(together) == pytest.approx(total / count, abs=1e-5)


# where text comes from ---------------------------------------------------------------------------


def read(name: str, split: str = "train") -> list[bytes]:
    return list(split_of(collection(name, split), split))


def test_splits_share_nothing(tmp_path: Path):
    (tmp_path / "many.txt").write_bytes(b"\0".join(b"%d" % n for n in range(50)))
    train, valid = read(str(tmp_path / "many.txt")), read(str(tmp_path / "many.txt"), "valid")
    assert sorted(map(int, train + valid)) == list(range(50)) and len(valid) == 4
    (tmp_path / "one.txt").write_bytes(bytes(range(1, 161)))
    assert b"".join(read(str(tmp_path / "one.txt")) + read(str(tmp_path / "one.txt"), "valid")) == bytes(range(1, 161))


def test_texts_in_many_forms(tmp_path: Path):
    text = b"first\0second\0third"
    (tmp_path / "a.txt").write_bytes(text)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text))
    (tmp_path / "c.txt.xz").write_bytes(lzma.compress(text))
    for name in ("a.txt", "b.txt.gz", "c.txt.xz"):
        assert list(collection(str(tmp_path / name), "train").read()) == [b"first", b"second", b"third"]
    assert len(list(collection(str(tmp_path / "*.txt*"), "train").read())) == 9
    rows = [{"text": "one"}, {"text": "two", "body": "zwei"}]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert list(collection(f"jsonl:{tmp_path / 'd.jsonl'}", "train").read()) == [b"one", b"two"]
    with pytest.raises(ValueError, match=r"d.jsonl:1 has no text in 'body'"):
        list(collection(f"jsonl:{tmp_path / 'd.jsonl'}#body", "train").read())


def test_enwik8_and_wikitext(tmp_path: Path):
    data = bytes(1000) + b"end of train" + b"start of valid"
    with zipfile.ZipFile(tmp_path / "enwik8.zip", "w") as archive:
        archive.writestr("enwik8", b"a" * 89_999_999 + b"b" + b"c" * 5_000_000 + data)
    train, valid = (read(f"enwik8:{tmp_path / 'enwik8.zip'}", split) for split in ("train", "valid"))
    assert [len(d) for d in train + valid] == [90_000_000, 5_000_000] and train[0][-1:] == b"b" and valid[0][:1] == b"c"
    (tmp_path / "wiki.valid.tokens").write_text(" \n = One = \n \n text \n = = Section = = \n more \n = Two = \n x \n")
    articles = read(f"wikitext:{tmp_path}", "valid")
    assert [a.count(b"\n") for a in articles] == [5, 2] and articles[1].startswith(b" = Two = ")
    with pytest.raises(ValueError, match=r"has no file such as wiki.train.tokens"):
        read(f"wikitext:{tmp_path}")


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zip"])
@pytest.mark.parametrize("damage", ["cut off", "another byte", "no archive"])
def test_damaged_archives_are_named(tmp_path: Path, suffix: str, damage: str):
    path, text = tmp_path / f"a.txt{suffix}", random.Random(0).randbytes(2000)
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", text)
    else:
        path.write_bytes(gzip.compress(text) if suffix == ".gz" else lzma.compress(text))
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes({"cut off": whole[:1000], "another byte": whole, "no archive": b"text"}[damage])
    with pytest.raises(ValueError, match=f"{path.name} is damaged, or no {suffix} file"):
        list(collection(str(path), "train").read())


def test_an_empty_archive_is_named(tmp_path: Path):
    zipfile.ZipFile(tmp_path / "a.zip", "w").close()
    with pytest.raises(ValueError, match="holds no file"):
        list(collection(str(tmp_path / "a.zip"), "train").read())


def test_the_standard_library_is_always_there():
    first = next(iter(collection("stdlib", "train").read()))
    assert len(collection("stdlib", "train").files) > 300 and b"import" in first


@pytest.mark.parametrize("name", ["enwik9:x", "no/such/file.txt", "enwik8:no/such/file", "jsonl:no/such/file"])
def test_sources_that_are_not_there(name: str):
    with pytest.raises(
        ValueError, match=r"no source of data 'enwik9'; did you mean 'enwik8'|no file matches|there is no"
    ):
        collection(name, "train")


def test_what_datasets_loads(monkeypatch: pytest.MonkeyPatch):
    module = ModuleType("datasets")
    rows = [{"body": f"text {n}"} for n in range(3)]
    module.load_dataset = lambda name, config: {"train": rows, "validation": rows[:1]}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    assert [len(read("hf:owner/name:config#body", split)) for split in ("train", "valid")] == [3, 1]
    many = [{"text": str(n)} for n in range(50)]
    module.load_dataset = lambda name, config: {"train": many, "test": rows}  # type: ignore[attr-defined]
    train, valid = (read("hf:owner/name", split) for split in ("train", "valid"))
    assert len(valid) == 4 and sorted(map(int, train + valid)) == list(range(50))
    module.load_dataset = lambda name, config: {"test": rows}  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"hf:owner/name has no split 'train' \(has: test\)"):
        read("hf:owner/name", "valid")
    module.load_dataset = lambda name, config: {"train": [{"text": "one"}, {"text": None}]}  # type: ignore[attr-defined]
    for name, message in (("hf:owner/name", "row 1 of .* 'text'"), ("hf:owner/name#body", "row 0 of .* 'body'")):
        with pytest.raises(ValueError, match=message):
            read(name)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="hf: needs the package datasets"):
        read("hf:owner/name")


def test_tokenizers_from_files(tmp_path: Path, documents: list[bytes]):
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(["the memory of the memory"] * 5, trainer)
    made.save(str(tmp_path / "tokenizer.json"))
    loaded = tokenizer(str(tmp_path / "tokenizer.json"))
    assert isinstance(loaded, FromFile) and loaded.end == 0
    ids = loaded.encode(b"the memory \xc3\xa9")
    assert ids.dtype == np.uint16 and len(ids) < 12 and loaded.decode(ids.tolist()) == "the memory é".encode()
    (tmp_path / "text.txt").write_bytes(b"\0".join([b"the memory of time"] * 40))
    data = Data(
        source=str(tmp_path / "text.txt"), tokenizer=str(tmp_path / "tokenizer.json"), cache=str(tmp_path), length=8
    )
    source = open_source(data)
    assert source.vocabulary == loaded.vocabulary and 1 < source.bytes_per_token < 19  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"tokenizer must be 'bytes' or the path of a tokenizer.json"):
        tokenizer("gpt2")


def test_vocabularies_with_gaps_and_documents_without_tokens(tmp_path: Path):
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 9}))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    loaded = tokenizer(str(tmp_path / "tokenizer.json"))
    assert loaded.vocabulary == 10 and loaded.end is None
    write(tmp_path / "s", [b" ", b"a b a", b" ", b"b b", b"a a a a", b" "], loaded)
    batch = Packed(Shards(tmp_path / "s"), 2, 4).batch(0)
    assert bool((batch["cu_seqlens"].diff() > 0).all())
    made.enable_truncation(2)
    made.enable_padding(length=7)
    made.save(str(tmp_path / "short.json"))
    assert tokenizer(str(tmp_path / "short.json")).encode(b"a b a a").tolist() == [0, 9, 0, 0]
    with pytest.raises(ValueError, match=r"holds tokens of 'tokenizer.json-.*', not of 'bytes': name theirs"):
        shards(Data(source=str(tmp_path / "s")))


def test_no_document_predicts_the_next_where_a_row_ends(tmp_path: Path):
    write(tmp_path / "s", [bytes([65 + i]) * 7 for i in range(6)], tokenizer("bytes"))  # and an end
    batch = Packed(Shards(tmp_path / "s"), 2, 16).batch(0)
    target = labels(batch)
    assert batch["tokens"][:, 15].tolist() == [0, 0] and target[:, -1].tolist() == [IGNORED, IGNORED]
    assert int((target != IGNORED).sum()) == 2 * 2 * 7


def test_names_of_files_and_lines_of_nothing(tmp_path: Path):
    (tmp_path / "a[1] b.txt").write_bytes(b"text")
    assert list(collection(str(tmp_path / "a[1] b.txt"), "train").read()) == [b"text"]
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n')
    assert list(collection(f"jsonl:{tmp_path / 'a.jsonl'}", "train").read()) == [b"one", b"two"]


def test_tokens_are_written_once(tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"\0".join([b"some words"] * 40))
    data = Data(source=str(path), cache=str(tmp_path / "cache"), length=4)
    size = len(shards(data))
    folders = sorted((tmp_path / "cache").iterdir())
    assert len(shards(data)) == size and sorted((tmp_path / "cache").iterdir()) == folders
    path.write_bytes(b"\0".join([b"other words, and more"] * 40))
    assert len(shards(data)) > size
    moved = Data(source=str(folders[0]), length=4)
    assert len(shards(moved)) == size


def test_another_task_may_be_the_held_out_part():
    data = Data(source="task:mqar", valid='task:{"name": "mqar", "pairs": 2}', length=64, batch=2)
    batches = [open_source(d, "valid").batch(0)["labels"] for d in (data, replace(data, source=data.valid, valid=None))]
    assert torch.equal(*batches)
    assert not torch.equal(batches[0], open_source(replace(data, valid=None), "valid").batch(0)["labels"])


def test_shards_are_not_split(tmp_path: Path):
    """A run is not judged on what it learns from."""
    path = tmp_path / "text.txt"
    path.write_bytes(b"\0".join([b"some words"] * 40))
    train, valid = (shards(Data(source=str(path), cache=str(tmp_path / split)), split) for split in ("train", "valid"))
    made = [next((tmp_path / split).iterdir()) for split in ("train", "valid")]
    data = Data(source=str(made[0]))
    with pytest.raises(ValueError, match=r"holds token shards, which are not split; name .* data\.valid"):
        shards(data, "valid")
    assert len(shards(replace(data, valid=str(made[1])), "valid")) == len(valid) < len(train)
