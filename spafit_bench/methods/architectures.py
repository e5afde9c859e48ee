"""Where each parameter of an encoder sits: one explicit row per architecture.

A row names every module of the model that has parameters. Nothing is guessed from substrings: a
parameter under no row is an error that names it, so that a new transformers release which renames
a module is noticed rather than silently frozen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from spafit_bench.base.errors import UserError

Component = Literal["embeddings", "layer", "encoder", "pooler", "classifier"]
Group = Literal["attention", "ffn"]


@dataclass(frozen=True)
class Matrix:
    """A linear map of a transformer block that LoRA can adapt."""

    name: str
    """The name that methods use, the same for every architecture."""
    module: str
    """Path inside the block."""
    group: Group
    fuses: tuple[str, ...] = ()
    """Names that this one matrix holds together, e.g. a fused query-key-value product."""


@dataclass(frozen=True)
class Norm:
    """A normalisation of a transformer block; it belongs to the half that it closes or opens."""

    module: str
    group: Group


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The parameter layout of one `model_type`.

    The tuples `embeddings`, `encoder`, `pooler` and `classifier` hold module paths from the root
    of the sequence-classification model; `layers` is the path of the list of blocks.
    """

    model_type: str
    embeddings: tuple[str, ...]
    layers: str
    matrices: tuple[Matrix, ...]
    norms: tuple[Norm, ...]
    classifier: tuple[str, ...]
    pooler: tuple[str, ...] = ()
    pooler_is_pretrained: bool = True
    """Whether published encoders have the pooler; decides only where no weights are at hand."""
    has_sdpa: bool = True
    """Whether transformers computes its attention with a fused kernel too, or only eagerly."""
    encoder: tuple[str, ...] = ()
    """Encoder-wide tensors of no single layer: relative embeddings, projections, final norms."""
    reserves_positions: bool = False
    """Whether positions count from the padding token's id, so that the first ones are not used."""
    note: str = ""

    @property
    def block(self) -> tuple[Matrix | Norm, ...]:
        """Every module of a block that has parameters."""
        return (*self.matrices, *self.norms)


@dataclass(frozen=True)
class Place:
    """Where one parameter sits."""

    component: Component
    layer: int | None
    """Counted from 0; None outside the blocks."""
    module: str
    """Path inside the block, or from the root outside the blocks."""
    leaf: str
    """`weight`, `bias`, ..."""

    @property
    def is_bias(self) -> bool:
        """Whether this is an additive vector (of a linear map or of a normalisation)."""
        return self.leaf == "bias"


def _bert_like(
    model_type: str,
    root: str,
    *,
    pooler: tuple[str, ...] = (),
    encoder: tuple[str, ...] = (),
) -> Architecture:
    """BERT's block, shared by RoBERTa and ELECTRA; the parts around it differ."""
    return Architecture(
        model_type=model_type,
        embeddings=(f"{root}.embeddings",),
        layers=f"{root}.encoder.layer",
        matrices=(
            Matrix("query", "attention.self.query", "attention"),
            Matrix("key", "attention.self.key", "attention"),
            Matrix("value", "attention.self.value", "attention"),
            Matrix("attention_output", "attention.output.dense", "attention"),
            Matrix("intermediate", "intermediate.dense", "ffn"),
            Matrix("output", "output.dense", "ffn"),
        ),
        norms=(Norm("attention.output.LayerNorm", "attention"), Norm("output.LayerNorm", "ffn")),
        classifier=("classifier",),
        pooler=pooler,
        encoder=encoder,
    )


_BERT = _bert_like("bert", "bert", pooler=("bert.pooler",))
_ROBERTA = replace(_bert_like("roberta", "roberta"), reserves_positions=True)
_ELECTRA = _bert_like("electra", "electra", encoder=("electra.embeddings_project",))
_DISTILBERT = Architecture(
    model_type="distilbert",
    embeddings=("distilbert.embeddings",),
    layers="distilbert.transformer.layer",
    matrices=(
        Matrix("query", "attention.q_lin", "attention"),
        Matrix("key", "attention.k_lin", "attention"),
        Matrix("value", "attention.v_lin", "attention"),
        Matrix("attention_output", "attention.out_lin", "attention"),
        Matrix("intermediate", "ffn.lin1", "ffn"),
        Matrix("output", "ffn.lin2", "ffn"),
    ),
    norms=(Norm("sa_layer_norm", "attention"), Norm("output_layer_norm", "ffn")),
    classifier=("pre_classifier", "classifier"),
)
_DEBERTA_V2 = Architecture(
    model_type="deberta-v2",
    embeddings=("deberta.embeddings",),
    layers="deberta.encoder.layer",
    matrices=(
        Matrix("query", "attention.self.query_proj", "attention"),
        Matrix("key", "attention.self.key_proj", "attention"),
        Matrix("value", "attention.self.value_proj", "attention"),
        # Of relative positions; absent where they share the content's (v3 and most of v2).
        Matrix("position_query", "attention.self.pos_query_proj", "attention"),
        Matrix("position_key", "attention.self.pos_key_proj", "attention"),
        Matrix("attention_output", "attention.output.dense", "attention"),
        Matrix("intermediate", "intermediate.dense", "ffn"),
        Matrix("output", "output.dense", "ffn"),
    ),
    norms=(Norm("attention.output.LayerNorm", "attention"), Norm("output.LayerNorm", "ffn")),
    pooler=("pooler",),
    pooler_is_pretrained=False,
    has_sdpa=False,
    classifier=("classifier",),
    encoder=("deberta.encoder.rel_embeddings", "deberta.encoder.LayerNorm", "deberta.encoder.conv"),
)
_MODERNBERT = Architecture(
    model_type="modernbert",
    embeddings=("model.embeddings",),
    layers="model.layers",
    matrices=(
        Matrix("qkv", "attn.Wqkv", "attention", fuses=("query", "key", "value")),
        Matrix("attention_output", "attn.Wo", "attention"),
        Matrix("intermediate", "mlp.Wi", "ffn"),
        Matrix("output", "mlp.Wo", "ffn"),
    ),
    norms=(Norm("attn_norm", "attention"), Norm("mlp_norm", "ffn")),
    pooler=("head",),
    classifier=("classifier",),
    encoder=("model.final_norm",),
    note="query, key and value are one matrix here: LoRA adapts it with one pair of factors of "
    "the given rank, r * (hidden + 3 * hidden) parameters",
)

ARCHITECTURES = {
    row.model_type: row
    for row in (
        _BERT,
        _ROBERTA,
        replace(_ROBERTA, model_type="camembert"),
        replace(_ROBERTA, model_type="xlm-roberta"),
        _ELECTRA,
        _DISTILBERT,
        _DEBERTA_V2,
        _MODERNBERT,
    )
}

_REFUSED = {
    "albert": "ALBERT shares one block between all its layers, so layer groups cannot be treated "
    "differently",
}


def get_architecture(model_type: str) -> Architecture:
    """Return the row of a `model_type`, as in a checkpoint's `config.json`.

    Raises:
        UserError: the architecture is not supported; the message says which are.
    """
    if model_type in ARCHITECTURES:
        return ARCHITECTURES[model_type]
    why = _REFUSED.get(model_type, f"no parameter table for model type {model_type!r}")
    raise UserError(f"unsupported encoder: {why}; supported: {', '.join(sorted(ARCHITECTURES))}")


def locate(name: str, architecture: Architecture) -> Place:
    """Find where a parameter sits.

    Args:
        name: full parameter name in the sequence-classification model.
        architecture: the row of its model type.

    Raises:
        UserError: no row covers the parameter.
    """
    module, _, leaf = name.rpartition(".")
    inside = _below(module, architecture.layers)
    if inside is not None:
        index, _, block_module = inside.partition(".")
        known = [row.module for row in architecture.block]
        if index.isdigit() and block_module in known:
            return Place("layer", int(index), block_module, leaf)
        raise _uncovered(name, architecture)
    for component, prefixes in _components(architecture):
        if any(module == prefix or _below(module, prefix) is not None for prefix in prefixes):
            return Place(component, None, module, leaf)
    raise _uncovered(name, architecture)


def _below(module: str, prefix: str) -> str | None:
    """Return the rest of `module` under the module `prefix`, or None if it is not under it."""
    return module[len(prefix) + 1 :] if module.startswith(prefix + ".") else None


def _components(row: Architecture) -> Iterable[tuple[Component, tuple[str, ...]]]:
    yield "embeddings", row.embeddings
    yield "encoder", row.encoder
    yield "pooler", row.pooler
    yield "classifier", row.classifier


def _uncovered(name: str, architecture: Architecture) -> UserError:
    return UserError(
        f"parameter {name!r} is under no rule of the {architecture.model_type} table; "
        "this transformers release may lay the model out differently"
    )
