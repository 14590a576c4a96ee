"""Hugging Face's loops around the same model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from memories import SPECS
from safetensors.torch import load_file
from torch import Tensor

from miras import MirasSpec
from titans import TitansConfig, TitansLM, generate

transformers = pytest.importorskip("transformers")
hf = pytest.importorskip("titans.hf")

V, T = 37, 12


def config(*layers: str, memory: str = "titans", **fields: Any) -> TitansConfig:
    small: dict[str, Any] = {"vocabulary": V, "dim": 16, "memory_heads": 2, "window": 5, "segment": 6, "persistent": 2}
    return TitansConfig.from_dict(small | {"layers": layers, "memory": MirasSpec.make(**SPECS[memory])} | fields)


def model(*layers: str, **fields: Any) -> Any:
    torch.manual_seed(0)
    return hf.TitansForCausalLM(hf.TitansHFConfig(config(*layers, **fields), pad_token_id=0)).double().eval()


def text(batch: int = 3, seed: int = 1) -> Tensor:
    return torch.randint(1, V, (batch, T), generator=torch.Generator().manual_seed(seed))


LEFT = torch.arange(T) >= torch.tensor([0, 3, 9])[:, None]
GREEDY: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}


@pytest.mark.parametrize("spec", ["moneta", "lact"])
def test_saved_and_loaded(tmp_path: Path, spec: str):
    """The Auto classes, safetensors, and the spec in JSON; to the last bit."""
    made = model("mac", "hybrid", memory=spec, tied=False)
    made.save_pretrained(tmp_path)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert type(back) is hf.TitansForCausalLM and back.config.of() == made.config.of()
    assert torch.equal(back(text()).logits, made(text()).logits)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert MirasSpec.from_dict(stored["titans"]["memory"]) == MirasSpec.make(**SPECS[spec])
    plain = TitansLM(made.config.of()).double()
    weights = load_file(tmp_path / "model.safetensors")
    plain.load_state_dict({n.removeprefix("model."): w for n, w in weights.items()})
    assert torch.equal(plain(text()), made(text()).logits)


def test_half_precision_on_loading(tmp_path: Path):
    made = model("mag").float()
    made.save_pretrained(tmp_path)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, device_map={"": "cpu"})
    assert {p.dtype for p in back.parameters()} == {torch.bfloat16}
    exact, rough = made(text()).logits, back(text()).logits
    assert (rough - exact).norm() / exact.norm() < 0.1


def test_forward():
    made, x = model("mac"), text()
    out = made(x, labels=x)
    torch.testing.assert_close(out.logits, made.model(x))
    torch.testing.assert_close(out.loss, made.model(x, return_loss=True))
    torch.testing.assert_close(made(x, logits_to_keep=2).logits, out.logits[:, -2:])
    torch.testing.assert_close(made(inputs_embeds=made.get_input_embeddings()(x)).logits, out.logits)
    torch.testing.assert_close(made(x, labels=x, num_items_in_batch=7).loss, out.loss * 3 * (T - 1) / 7)
    made.train()
    assert made(x, labels=x).logits is None  # the logits of a long text never exist
    with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
        made()


def test_padding_has_no_loss():
    """Not even that of the first token of a text, which the padding before it would be asked for."""
    made, x = model("mac"), text(1)
    padded = torch.cat([torch.zeros(1, 3, dtype=x.dtype), x], 1)
    target = torch.cat([torch.full((1, 3), -100), x], 1)
    mask = torch.arange(padded.shape[1])[None] >= 3
    torch.testing.assert_close(made(padded, attention_mask=mask, labels=target).loss, made(x, labels=x).loss)


@pytest.mark.parametrize("kind", ["memory", "mac"])
def test_generate(kind: str):
    """Cached equals uncached equals our own, with padding on the left; beams too."""
    made, x = model(kind), text()
    ours = generate(made.model, x, 4, mask=LEFT)
    for options in (GREEDY, GREEDY | {"num_beams": 2}):
        cached, not_cached = (
            made.generate(x, attention_mask=LEFT.long(), use_cache=u, **options) for u in (True, False)
        )
        assert torch.equal(cached, not_cached)
        alone = made.generate(x[2:, 9:], attention_mask=LEFT[2:, 9:].long(), **options)
        assert torch.equal(cached[2:, 9:], alone)
    assert torch.equal(made.generate(x, attention_mask=LEFT.long(), **GREEDY)[:, T:], ours)


def test_a_dialogue_continues_from_its_cache():
    made, x = model("mac"), text(1)
    out = made.generate(x, attention_mask=torch.ones_like(x), return_dict_in_generate=True, **GREEDY)
    assert isinstance(out.past_key_values, hf.TitansCache) and out.past_key_values.get_seq_length() == T + 3
    longer = torch.cat([out.sequences, text(1, seed=2)[:, :4]], 1)
    ones = torch.ones_like(longer)
    again = made.generate(longer, attention_mask=ones, past_key_values=out.past_key_values, **GREEDY)
    assert torch.equal(again, made.generate(longer, attention_mask=ones, **GREEDY))


def test_checkpointing():
    made, x = model("mac", "mag").train(), text()
    grads = []
    for to in ("disable", "enable"):  # renamed in 5.23
        old, new = (getattr(made, f"{which}_checkpointing_{to}", None) for which in ("gradient", "activation"))
        switch = new or old
        assert switch is not None
        switch()
        made.zero_grad()
        made(x, labels=x).loss.backward()
        grads.append([p.grad for p in made.parameters()])
    assert made.model.checkpointing
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.slow
def test_trainer(tmp_path: Path):
    """It learns a sentence by heart."""
    made, row = model("mac").float(), {"input_ids": text(1)[0], "labels": text(1)[0]}
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=12,
        per_device_train_batch_size=2,
        learning_rate=3e-2,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(model=made, args=arguments, train_dataset=[row] * 8, eval_dataset=[row])
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before / 2


TASK = """
task: local
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
"""


@pytest.mark.slow
def test_lm_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The evaluation harness runs a task of this machine and chooses as our own likelihoods do."""
    lm_eval = pytest.importorskip("lm_eval")
    harness = pytest.importorskip("lm_eval.models.huggingface").HFLM
    tokenizers = pytest.importorskip("tokenizers")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(V)}, unk_token="w0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="w0", eos_token="w0", pad_token="w0"
    )
    made, rows, right = model("mac").float(), [], 0
    for row in text(6).tolist():
        context, choices = [f"w{i}" for i in row[: row[0] % 8 + 2]], [f"w{i}" for i in row[8:12]]
        logits = made.model(tokenizer(" ".join(context), return_tensors="pt").input_ids)[0, -1]
        best = int(logits[[int(c[1:]) for c in choices]].argmax())
        answer = best if len(rows) % 3 else (best + 1) % 4  # two thirds are what the model says
        rows.append({"context": " ".join(context), "choices": choices, "answer": answer})
        right += answer == best
    (tmp_path / "rows.json").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "local.yaml").write_text(TASK.format(data=tmp_path / "rows.json"))
    results = lm_eval.simple_evaluate(
        model=harness(pretrained=made, tokenizer=tokenizer, device="cpu", batch_size=3),
        tasks=["local"],
        task_manager=lm_eval.tasks.TaskManager(include_path=str(tmp_path)),
        bootstrap_iters=0,
    )
    assert results["results"]["local"]["acc,none"] == pytest.approx(right / 6)
