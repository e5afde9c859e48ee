"""A BERT-like classifier on tokens without padding, from the plain model's own parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own custom)
from transformers import PreTrainedModel

from spafit_bench.methods.architectures import get_architecture
from spafit_bench.methods.plan import Plan
from spafit_bench.models.encoding import Batch
from spafit_bench.models.fused.block import Block
from spafit_bench.models.fused.kernels import Dropout
from spafit_bench.models.fused.maps import FusedMap
from spafit_bench.models.fused.native import choose_kernels
from spafit_bench.models.numerics import Numerics

_FAMILIES = ("bert", "roberta", "camembert", "xlm-roberta", "electra", "distilbert")
_COMPUTED = """
    vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act
    hidden_dropout_prob layer_norm_eps attention_probs_dropout_prob max_position_embeddings
    type_vocab_size initializer_range pad_token_id classifier_dropout embedding_size
    summary_activation summary_last_dropout summary_type summary_use_proj activation
    attention_dropout dim dropout hidden_dim n_heads n_layers qa_dropout seq_classif_dropout
    sinusoidal_pos_embds
"""
"""Keys of a `config.json` that the fast engine computes with, in the families that have them."""
_METADATA = """
    _name_or_path _commit_hash _num_labels architectures model_type transformers_version dtype
    torch_dtype id2label label2id num_labels finetuning_task task_specific_params problem_type
    bos_token_id eos_token_id sep_token_id cls_token_id mask_token_id unk_token_id language
    tie_word_embeddings tie_weights_ use_cache output_past gradient_checkpointing torchscript
    output_attentions output_hidden_states return_dict chunk_size_feed_forward directionality
    pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type
    position_embedding_type
"""
"""Keys that do not change the logits. Any other key that differs from the family's default may
change the forward pass, so the plain engine computes it."""


def why_not_fused(config: Mapping[str, Any], plan: Plan) -> str | None:
    """Return why a run needs the plain engine; None if the fast engine supports it.

    `config` is the checkpoint's `config.json`.
    """
    from transformers import AutoConfig

    kind = str(config.get("model_type"))
    if kind not in _FAMILIES:
        return f"the fast engine does not support {kind}"
    activation = config.get("activation" if kind == "distilbert" else "hidden_act", "gelu")
    if activation != "gelu":
        return f"the fast engine does not support the activation {activation!r}"
    if config.get("position_embedding_type", "absolute") != "absolute":
        return "the fast engine does not support relative positions"
    usual = AutoConfig.for_model(kind).to_dict()
    for key, value in config.items():
        known = key in _METADATA.split() or (key in _COMPUTED.split() and key in usual)
        if not known and value not in (None, [], {}) and value != usual.get(key):
            what = f"{key} = {json.dumps(value)}"
            return f"the fast engine does not know what {what:.80} in config.json changes"
    loras = [tensor.lora for tensor in plan.tensors if tensor.lora is not None]
    if any(lora.dora for lora in loras):
        return "the fast engine does not support DoRA"
    if any(lora.dropout > 0 for lora in loras):
        return "the fast engine merges adapters, so it has no dropout on their input"
    return None


class FusedEncoder:
    """Computes a model's logits from the model's own parameters.

    The result is that of the model's own forward pass, but the computation differs: there is no
    padding; query, key and value are one product; adapters are merged into their matrices; the last
    block computes only the first tokens; and dropout uses cheap random bits.
    """

    name = "fast"

    def __init__(self, model: PreTrainedModel, numerics: Numerics, prefix_layers: int = 0) -> None:
        """Prepare the products of a model that is on its device.

        `why_not_fused` must be None for it. The first `prefix_layers` layers have no dropout, and
        a batch may already contain their output.
        """
        self.model, self.numerics, self.prefix_layers = model, numerics, prefix_layers
        config = model.config
        self.kind = config.model_type
        row = get_architecture(self.kind)
        self.embeddings = model.get_submodule(row.embeddings[0])
        if self.kind == "distilbert":
            hidden, after_attention, attention = config.dropout, 0.0, config.attention_dropout
        else:
            hidden = after_attention = config.hidden_dropout_prob
            attention = config.attention_probs_dropout_prob
        self.dropout = Dropout.of(hidden)
        self.kernels = choose_kernels(numerics)
        paths = {matrix.name: matrix.module for matrix in row.matrices}
        layers = list(model.get_submodule(row.layers).children())

        def fuse(layer: nn.Module, *names: str) -> FusedMap:
            linears: list[Any] = [layer.get_submodule(paths[name]) for name in names]
            return FusedMap(linears, numerics.dtype, self.kernels)

        def block(layer: nn.Module) -> Block:
            norms: list[Any] = [layer.get_submodule(norm.module) for norm in row.norms]
            return Block(
                qkv=fuse(layer, "query", "key", "value"),
                attention_output=fuse(layer, "attention_output"),
                intermediate=fuse(layer, "intermediate"),
                output=fuse(layer, "output"),
                attention_norm=norms[0],
                output_norm=norms[1],
                num_heads=config.num_attention_heads,
                attention_output_dropout=Dropout.of(after_attention),
                output_dropout=self.dropout,
                attention_dropout=Dropout.of(attention),
                kernels=self.kernels,
                first_token_only=layer is layers[-1],
            )

        self.blocks = [block(layer) for layer in layers]
        self.projection = getattr(model.base_model, "embeddings_project", None)
        padding = int(config.pad_token_id or 0)
        self.first_position = padding + 1 if row.reserves_positions else 0
        self.refresh()

    def refresh(self) -> None:
        """Merge the adapters again, because parameters have changed."""
        for block in self.blocks:
            for fused in block.maps:
                fused.refresh(training=self.model.training)

    def logits(self, batch: Batch) -> Tensor:
        """Return logits, (size, num_outputs) fp32, with dropout in training mode."""
        training = self.model.training
        if self.prefix_layers:
            x = (self.prefix(batch) if batch.prefix is None else batch.prefix).float()
        else:
            x = self._embed(batch, training)
        low = x.detach().to(self.numerics.dtype)
        for block in self.blocks[self.prefix_layers :]:
            x, low = block(x, low, batch.layout, training=training)
        with self.numerics.autocast():
            return self._head(x).float()

    def _head(self, first: Tensor) -> Tensor:
        """Apply the model's own head to the first tokens, (size, hidden)."""
        model: Any = self.model
        if self.kind == "bert":
            return model.classifier(model.dropout(model.bert.pooler(first[:, None])))
        if self.kind == "distilbert":
            return model.classifier(model.dropout(F.relu(model.pre_classifier(first))))
        return model.classifier(first[:, None])

    @torch.no_grad()
    def prefix(self, batch: Batch) -> Tensor:
        """Return the output of the first `prefix_layers` blocks, computed without dropout.

        It is (num_rows, hidden) in the compute precision, whether it is cached or not.
        """
        x = self._embed(batch, training=False)
        low = x.to(self.numerics.dtype)
        for block in self.blocks[: self.prefix_layers]:
            x, low = block(x, low, batch.layout, training=False)
        return low

    def _embed(self, batch: Batch, training: bool) -> Tensor:
        inputs = {"input_ids": batch.input_ids[None]}
        inputs["position_ids"] = batch.position_ids[None] + self.first_position
        if batch.token_type_ids is not None:
            inputs["token_type_ids"] = batch.token_type_ids[None]
        self.embeddings.eval()  # without torch's dropout, which is slower than ours
        x: Tensor = self.embeddings(**inputs)[0]
        if training and self.dropout:
            x = self.dropout(x)
        if self.projection is None:
            return x
        with self.numerics.autocast():  # frozen, it is in the compute precision
            return self.projection(x).float()
