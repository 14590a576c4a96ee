"""The models in Hugging Face's clothes. The only file that imports transformers.

``import titans.hf`` registers them with ``AutoConfig`` and ``AutoModelForCausalLM``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from titans.cache import ModelCache
from titans.config import TitansConfig
from titans.loss import IGNORED
from titans.model import TitansLM


class TitansHFConfig(PretrainedConfig):
    """A `titans.TitansConfig` as Hugging Face's configuration; ``config.json`` holds it under ``titans``.

    Args:
        titans: the config, or a mapping of its fields.
        kwargs: what every `PretrainedConfig` takes.

    Example:
        >>> from titans import preset
        >>> TitansHFConfig(preset("tiny", "mag")).num_hidden_layers
        2
    """

    model_type = "titans"

    def __init__(self, titans: TitansConfig | Mapping[str, Any] | None = None, **kwargs: Any):
        usual = TitansConfig(vocabulary=256, dim=64, layers=("mac",))  # transformers builds one without arguments
        made = titans if isinstance(titans, TitansConfig) else TitansConfig.from_dict(titans) if titans else usual
        self.titans = made.to_dict()
        self.vocab_size, self.hidden_size = made.vocabulary, made.dim
        self.num_hidden_layers = len(made.layers)
        self.num_attention_heads = made.attention.heads
        kwargs.setdefault("tie_word_embeddings", False)  # there is no second name for one matrix
        super().__init__(**kwargs)

    def of(self) -> TitansConfig:
        """The config itself."""
        return TitansConfig.from_dict(self.titans)


class TitansCache:
    """A `titans.ModelCache` that counts positions as `transformers.GenerationMixin` does, padding included.

    Attributes:
        cache: what the model remembers.
        length: columns of the batch that have been read.
    """

    is_compileable = False

    def __init__(self, cache: ModelCache | None = None, length: int = 0):
        self.cache, self.length = cache, length

    def get_seq_length(self, layer: int = 0) -> int:
        """Columns that have been read."""
        return self.length

    def reorder_cache(self, beams: Tensor) -> None:
        """Takes rows in another order: beam search."""
        assert self.cache is not None
        self.cache = self.cache.select(beams.tolist())


class TitansForCausalLM(PreTrainedModel, GenerationMixin):
    """`titans.TitansLM` for ``Trainer``, ``generate`` and ``from_pretrained``; one class for every memory.

    A padded batch is read as if its padding were not there, on either side. Without labels logits are returned; while
    training with labels only the loss is, so that the logits of a long text never exist.

    Args:
        config: what to build.

    Example:
        >>> import torch
        >>> from titans import preset
        >>> model = TitansForCausalLM(TitansHFConfig(preset("tiny", "mac")))
        >>> model.generate(torch.randint(1, 256, (1, 5)), max_new_tokens=3, do_sample=False).shape
        torch.Size([1, 8])
    """

    config_class = TitansHFConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Layer"]  # noqa: RUF012
    _is_stateful = True

    def __init__(self, config: TitansHFConfig):
        super().__init__(config)
        self.model = TitansLM(config.of())
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _init_weights(self, module: nn.Module) -> None:
        """`TitansLM` has initialised itself."""

    def _set_gradient_checkpointing(self, enable: bool = True, **_: Any) -> None:
        self.model.checkpointing = enable

    def get_input_embeddings(self) -> nn.Module:
        """The embedding."""
        return self.model.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the embedding."""
        assert isinstance(value, nn.Embedding)
        self.model.embedding = value

    def get_output_embeddings(self) -> nn.Module | None:
        """The head, or None if it is the embedding."""
        return self.model.head

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: TitansCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """What Hugging Face's causal language models take and return.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, T]``, or ``[B, past + T]``: 0 for padding.
            inputs_embeds: ``[B, T, dim]`` instead of ``input_ids``.
            past_key_values: the cache an earlier call returned.
            labels: ``[B, T]``, compared with the logits of the token before; -100 for no loss.
            use_cache: whether to return a cache.
            logits_to_keep: of how many of the last tokens to return logits; 0 for all.
            kwargs: ``num_items_in_batch`` divides the summed loss, as ``Trainer`` wants it; others are ignored.
        """
        x = inputs_embeds if input_ids is None else input_ids
        if x is None:
            raise ValueError("pass input_ids or inputs_embeds")
        past = past_key_values or TitansCache()
        mask = None if attention_mask is None else attention_mask[:, -x.shape[1] :].bool()
        hidden, cache = self.model.hidden(x, past.cache, mask=mask)
        after = TitansCache(cache, past.length + x.shape[1]) if use_cache or past_key_values is not None else None
        loss = None
        if labels is not None:
            following = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
            if mask is not None:  # padding predicts nothing, not even the first token of a text
                following = following.masked_fill(~mask, IGNORED)
            loss = self.model.loss(hidden, following)
            if (items := kwargs.get("num_items_in_batch")) is not None:
                loss = loss * (following != IGNORED).sum() / items
            if self.training:
                return CausalLMOutputWithPast(loss=loss)
        logits = self.model.logits(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=after)  # type: ignore[arg-type]


AutoConfig.register("titans", TitansHFConfig)
AutoModelForCausalLM.register(TitansHFConfig, TitansForCausalLM)
