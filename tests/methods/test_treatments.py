"""Treatments: the grammar of one group of parameters."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spafit_bench.base.errors import UserError
from spafit_bench.methods.treatments import BIAS, FROZEN, FULL, Lora, Treatment, parse_treatment

NAMES = st.lists(
    st.sampled_from(["query", "attention_output", "ffn", "LayerNorm", "output.dense.bias"]),
    min_size=1,
    max_size=4,
    unique=True,
).map(tuple)
LORAS = st.builds(
    Lora,
    matrices=NAMES,
    rank=st.integers(1, 10_000),
    alpha=st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False),
    dropout=st.floats(min_value=0, max_value=1, exclude_max=True),
    rslora=st.booleans(),
    dora=st.booleans(),
)
TREATMENTS = st.one_of(
    st.sampled_from([FROZEN, FULL, BIAS]),
    st.builds(
        Treatment,
        biases=st.one_of(st.just(()), st.just(("all",)), NAMES),
        loras=st.lists(LORAS, max_size=3).map(tuple),
    ),
)


@given(TREATMENTS)
def test_a_treatment_is_read_back_as_it_was_written(treatment: Treatment) -> None:
    """Writing and reading is exact, whatever the numbers."""
    assert parse_treatment(str(treatment)) == treatment


EXAMPLES = {
    "frozen": FROZEN,
    " full ": FULL,
    "bias": BIAS,
    "bias(attention+output.dense.bias)": Treatment(biases=("attention", "output.dense.bias")),
    "lora(query, r=8, alpha=16)": Treatment(loras=(Lora(matrices=("query",), rank=8, alpha=16),)),
    "bias(ffn) + lora(query+output,r=4,alpha=0.5,dropout=0.1,rslora,dora)": Treatment(
        biases=("ffn",),
        loras=(
            Lora(
                matrices=("query", "output"),
                rank=4,
                alpha=0.5,
                dropout=0.1,
                rslora=True,
                dora=True,
            ),
        ),
    ),
    "lora(query,r=1,alpha=1)+lora(ffn,r=2,alpha=1e+20)": Treatment(
        loras=(
            Lora(matrices=("query",), rank=1, alpha=1),
            Lora(matrices=("ffn",), rank=2, alpha=1e20),
        )
    ),
}


@pytest.mark.parametrize("text", EXAMPLES)
def test_every_form_is_read(text: str) -> None:
    """Each part of the grammar, spaces included."""
    assert parse_treatment(text) == EXAMPLES[text]


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("froze", "did you mean 'frozen'"),
        ("frozen+bias", "stands alone"),
        ("full+lora(query,r=1,alpha=1)", "stands alone"),
        ("bias+bias(ffn)", "two bias parts"),
        ("bias()", "empty name"),
        ("bias(a++b)", "empty name"),
        ("bias(a+a)", "given twice"),
        ("lora", "begin with the matrices"),
        ("lora(r=8,alpha=16)", "begin with the matrices"),
        ("lora(query,r=8)", "give both r= and alpha="),
        ("lora(query,alpha=8)", "give both r= and alpha="),
        ("lora(query,rank=8,alpha=8)", "unknown option 'rank=8'"),
        ("lora(query,r=8,alpha=8,dora=yes)", "unknown option 'dora=yes'"),
        ("lora(query,r=8,r=9,alpha=8)", "given twice"),
        ("lora(query,r=eight,alpha=8)", "eight"),
        ("lora(query,r=0,alpha=8)", "at least 1, not 0"),
        ("lora(query,r=1,alpha=-8)", "positive number, not -8"),
        ("lora(query,r=1,alpha=nan)", "positive number, not nan"),
        ("lora(query,r=1,alpha=inf)", "positive number, not inf"),
        ("lora(query,r=1,alpha=1,dropout=1)", "[0, 1), not 1"),
        ("lora(query,r=1,alpha=1", "is not a treatment"),
        ("", "is not a treatment"),
    ],
)
def test_what_is_wrong_is_quoted(text: str, fragment: str) -> None:
    """A mistake is one message with the part that is wrong."""
    with pytest.raises(UserError) as error:
        parse_treatment(text)
    assert fragment in str(error.value)


def test_scaling_follows_the_papers() -> None:
    """Alpha / r, or alpha / sqrt r in rank-stabilised LoRA."""
    plain = Lora(matrices=("query",), rank=64, alpha=128)
    stable = Lora(matrices=("query",), rank=64, alpha=128, rslora=True)
    assert plain.scaling == 128 / 64
    assert stable.scaling == 128 / math.sqrt(64)


def test_an_adapter_counts_its_two_factors_and_the_magnitude() -> None:
    """Two factors of a 4096 x 1024 matrix at rank 64; DoRA adds one number per row."""
    lora = Lora(matrices=("intermediate",), rank=64, alpha=128)
    dora = Lora(matrices=("intermediate",), rank=64, alpha=128, dora=True)
    assert lora.num_parameters(1024, 4096) == 64 * 1024 + 4096 * 64
    assert dora.num_parameters(1024, 4096) == 64 * 1024 + 4096 * 64 + 4096


def test_alpha_as_a_multiple_of_the_rank() -> None:
    """`2x` is twice the rank, and is printed as the number that it is."""
    assert str(parse_treatment("lora(query,r=8,alpha=2x)")) == "lora(query,r=8,alpha=16)"
    assert parse_treatment("lora(query,r=8,alpha=0.5x)").loras[0].alpha == 4


def test_full_takes_no_names() -> None:
    """The message says what to write instead."""
    with pytest.raises(UserError, match=r"'full' takes no names.*bias\(layernorm\)"):
        parse_treatment("full(layernorm)")
    with pytest.raises(UserError, match="'full' stands alone"):
        parse_treatment("full+bias")
