"""Methods: strata, presets, the one-line form and YAML."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from spafit_bench.base.errors import UserError
from spafit_bench.methods.layer_groups import parse_layers
from spafit_bench.methods.method import (
    PARTS,
    Method,
    Stratum,
    get_method,
    method_names,
    parse_method,
)
from spafit_bench.methods.treatments import BIAS, FROZEN, FULL
from tests.methods.test_treatments import TREATMENTS


@st.composite
def methods(draw: st.DrawFn, depth: int = 12) -> Method:
    """Draw any number of groups that cover the layers once, in any order, and parts."""
    cuts = draw(st.sets(st.integers(1, depth - 1)))
    starts = [0, *sorted(cuts)]
    ends = [*starts[1:], depth]
    strata = [
        Stratum(
            str(start) if start == end - 1 else f"{start}-{end - 1}",
            draw(TREATMENTS),
        )
        for start, end in zip(starts, ends, strict=True)
    ]
    parts = {part: draw(st.sampled_from([FROZEN, BIAS, FULL])) for part in PARTS[:-1]}
    return Method(name="drawn", strata=tuple(draw(st.permutations(strata))), **parts)


def substance(method: Method) -> tuple[object, ...]:
    """What a method does, without its name and texts."""
    return (method.strata, *(getattr(method, part) for part in PARTS))


@given(methods())
def test_the_one_line_form_is_read_back(method: Method) -> None:
    """Any number of groups and every part survive writing and reading; so does the plan's form."""
    assert substance(parse_method(method.spec)) == substance(method)
    resolved = method.resolve(12)
    assert substance(parse_method(resolved.spec)) == substance(resolved)
    assert parse_method(method.spec).spec == method.spec


@settings(max_examples=50)
@given(methods())
def test_yaml_is_read_back(method: Method) -> None:
    """YAML and the one-line form say the same."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mine.yaml"
        file.write_text(yaml.safe_dump(method.to_yaml_dict()), encoding="utf-8")
        read = get_method(str(file))
    assert substance(read) == substance(method)
    assert read.spec == method.spec
    assert not read.is_preset


@pytest.mark.parametrize("name", ["full", "bitfit", "lora", "lora-ii", "spafit", "spafit-ii"])
def test_a_preset_is_one_line_and_yaml(name: str, tmp_path: Path) -> None:
    """Every shipped method can be printed, edited and read back."""
    method = get_method(name)
    file = tmp_path / "copy.yaml"
    file.write_text(yaml.safe_dump(method.to_yaml_dict()), encoding="utf-8")
    assert substance(parse_method(method.spec)) == substance(method)
    assert replace(get_method(str(file)), is_preset=True) == method


def test_the_documented_line_is_spafit() -> None:
    """The line in the manual is SPAFIT-4-9-I on 24 layers, named parts and defaults included."""
    line = "0-4:frozen;5-9:bias;10-23:lora(query+key+value,r=64,alpha=128)+bias(ffn)"
    for name in ("spafit", "spafit-4-9-i"):
        assert substance(get_method(name).resolve(24)) == substance(parse_method(line))
        assert get_method(name).resolve(24).spec == line
    second = line.replace("value", "value+attention_output")
    assert get_method("spafit-ii").resolve(24).spec == second
    assert get_method("spafit-4-9-ii").resolve(24).spec == second


def test_shipped_methods_stand_in_the_order_of_tables() -> None:
    """The names that `list` and tables show."""
    assert method_names() == ("full", "bitfit", "lora", "lora-ii", "spafit", "spafit-ii")


@pytest.mark.parametrize(
    ("depth", "frozen", "bias", "lora"),
    [(24, 5, 5, 14), (12, 2, 3, 7), (6, 1, 1, 4), (2, 0, 1, 1), (48, 10, 10, 28), (1, 0, 0, 1)],
)
def test_default_boundaries_scale_with_depth(depth: int, frozen: int, bias: int, lora: int) -> None:
    """Rounded 5/24 and 10/24 of the depth, half to even; an empty group is left out."""
    strata = {str(s.treatment): s.layers for s in get_method("spafit").resolve(depth).strata}
    sizes = [
        len(parse_layers(strata[key], depth)) if key in strata else 0
        for key in (
            "frozen",
            "bias",
            "lora(query+key+value,r=64,alpha=128)+bias(ffn)",
        )
    ]
    assert sizes == [frozen, bias, lora]


def test_stated_boundaries_are_never_rescaled() -> None:
    """A numbered form means the same layers at any depth, or is an error with the valid range."""
    for depth in (12, 24, 30):
        layers = [s.layers for s in get_method("spafit-4-9-i").resolve(depth).strata]
        assert layers == ["0-4", "5-9", f"10-{depth - 1}"]
    with pytest.raises(UserError, match=r"5-9.*encoder of 6 layers.*0-5"):
        get_method("spafit-4-9-i").resolve(6)
    with pytest.raises(UserError, match=r"begin at layer 24.*24 layers.*at most 23"):
        get_method("spafit-4-23-i").resolve(24)


def test_equal_boundaries_leave_out_the_second_group() -> None:
    """N1 = N2 means no bias-only layers; N1 > N2 is refused."""
    assert [s.layers for s in get_method("spafit-3-3-ii").resolve(6).strata] == ["0-3", "4-5"]
    with pytest.raises(UserError, match="must not decrease"):
        get_method("spafit-9-4-i")


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("all", range(24)),
        ("3", range(3, 4)),
        ("0-4", range(5)),
        ("10-last", range(10, 24)),
        ("..5/24", range(5)),
        ("5/24..10/24", range(5, 10)),
        ("10/24..", range(10, 24)),
        ("..", range(24)),
        ("1/2..1/2", range(12, 12)),
    ],
)
def test_layer_groups(text: str, layers: range) -> None:
    """Both ends are included, counted from 0; fractions are half open."""
    assert parse_layers(text, 24) == layers


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("24", "valid layers are 0-23"),
        ("20-24", "valid layers are 0-23"),
        ("24-last", "at most 23"),
        ("9-5", "run backwards; write 5-9"),
        ("10/24..5/24", "run backwards; write 5/24..5/12"),
        ("1/0..", "denominator"),
        ("..3/2", "at most 1"),
        ("-1", "is not a layer group"),
        ("first", "is not a layer group"),
        ("", "is not a layer group"),
    ],
)
def test_wrong_layer_groups(text: str, fragment: str) -> None:
    """The message quotes the group and names the valid layers."""
    with pytest.raises(UserError) as error:
        parse_layers(text, 24)
    assert fragment in str(error.value)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("0-5:bias;5-11:full", "layer 5 is in two groups, '0-5' and '5-11'"),
        ("all:bias;3:full", "layer 3 is in two groups, 'all' and '3'"),
        ("0-4:bias;6-11:full", "leaves out layer 5 of an encoder of 12 layers"),
        ("0-4:bias", "say what happens to each of 0-11"),
        ("0-12:bias", "valid layers are 0-11"),
        ("..1/3:bias;1/2..:full", "leaves out layer 4"),
    ],
)
def test_layers_must_be_covered_once(text: str, fragment: str) -> None:
    """Overlapping, missing and impossible layers are named."""
    with pytest.raises(UserError) as error:
        parse_method(text).resolve(12)
    assert fragment in str(error.value)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("0-4=frozen:", "is not a layer group"),
        ("all:bias;0-4", "is not LAYERS:TREATMENT"),
        ("embeddings:bias", "has no layer group"),
        ("all:bias;pooler:full;pooler:bias", "treats 'pooler' twice"),
        ("all:bias;poolr:full", "'poolr' is not a layer group"),
        ("all:bias;embeddings:lora(query,r=1,alpha=1)", "choices: frozen, bias, full"),
        ("all:bias;pooler:bias(ffn)", "choices: frozen, bias, full"),
        ("all:bias;classifier:frozen", "it is always full"),
        ("all:bais", "did you mean 'bias'"),
    ],
)
def test_wrong_lines(text: str, fragment: str) -> None:
    """What is wrong in a line is quoted, with the choices."""
    with pytest.raises(UserError) as error:
        get_method(text)
    assert fragment in str(error.value)


def test_a_wrong_name_has_the_nearest_match() -> None:
    """A typo is answered with the method that was meant."""
    with pytest.raises(UserError, match="did you mean 'bitfit'"):
        get_method("bitfi")
    with pytest.raises(UserError, match="spafit-N1-N2-i"):
        get_method("quantum")


@pytest.mark.parametrize(
    ("body", "fragment"),
    [
        ("strats: []", "unknown key 'strats'; did you mean 'strata'"),
        ("name: x", "'strata' must be a list"),
        ("strata: []", "'strata' must be a list"),
        ("strata: [{layers: all}]", "exactly 'layers' and 'treatment'"),
        ("strata: [{layers: all, treatment: biass}]", "did you mean 'bias'"),
        ("strata: [{layers: 9-5, treatment: bias}]", "run backwards"),
        ("strata: [{layers: all, treatment: bias}]\nclassifier: bias", "it is always full"),
        ("- bias", "top level must be a mapping"),
        ("strata: [", "not valid YAML"),
    ],
)
def test_wrong_files(body: str, fragment: str, tmp_path: Path) -> None:
    """What is wrong in a file is quoted."""
    file = tmp_path / "mine.yaml"
    file.write_text(body, encoding="utf-8")
    with pytest.raises(UserError) as error:
        get_method(str(file))
    assert fragment in str(error.value)


def test_a_file_needs_only_strata(tmp_path: Path) -> None:
    """Unstated parts have their defaults, and a single layer may be written as a number."""
    file = tmp_path / "mine.yaml"
    file.write_text(
        "strata:\n"
        "  - {layers: 0, treatment: frozen}\n"
        "  - {layers: 1-last, treatment: 'lora(ffn, r=4, alpha=8)'}\n",
        encoding="utf-8",
    )
    method = get_method(str(file))
    assert method.name == "mine"
    assert method.resolve(3).spec == "0:frozen;1-2:lora(ffn,r=4,alpha=8)"
    assert (method.embeddings, method.pooler, method.classifier) == (FROZEN, BIAS, FULL)
    assert method.defaults == "lora"


def test_overrides_reach_every_adapter() -> None:
    """`method.rank=8` changes each LoRA treatment and nothing else."""
    method = parse_method("0:lora(query,r=2,alpha=4)+bias;1:lora(key,r=3,alpha=6,dora)")
    changed = method.with_lora(rank=8, dropout=0.1)
    assert changed.spec == (
        "0:lora(query,r=8,alpha=4,dropout=0.1)+bias;1:lora(key,r=8,alpha=6,dropout=0.1,dora)"
    )
