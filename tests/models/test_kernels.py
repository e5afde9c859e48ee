"""The compiled kernels are held to float64 and to PyTorch's operations, one by one."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own custom)

from spafit_bench.models.fused import native
from spafit_bench.models.fused.kernels import Dropout, Kernels, draw_seed, plus
from spafit_bench.models.numerics import Numerics, has_bf16_instructions
from spafit_bench.models.ragged import Ragged
from tests.conftest import REPOSITORY
from tests.models.test_engines import (
    NO_DROPOUT,
    batch_of,
    checkpoint_of,
    logits_and_gradients,
    split_of,
    trained,
)
from tests.support.models import build

BF16 = Numerics(torch.device("cpu"), "bf16")
REASON = native.why_not_native(BF16)
compiled = pytest.mark.skipif(REASON is not None, reason=f"no compiled kernels: {REASON}")

LENGTHS = ([7, 3, 20, 1, 12], [16, 16], [1], [130, 2, 55])
HEADS, HEAD_SIZE = 3, 20
WIDTH = HEADS * HEAD_SIZE
"""Neither is a multiple of a vector register's 16 numbers."""
EXACT = {"rtol": 0.0, "atol": 0.0}
ROUNDED = {"rtol": 2**-8, "atol": 2**-12}
"""One rounding to bf16 and a little, as sums are made in another order."""


@pytest.fixture
def kernels() -> Kernels:
    """The compiled ones."""
    return native.choose_kernels(BF16)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """One thread, and two."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def layout_of(lengths: list[int]) -> Ragged:
    """Where these sequences are."""
    return Ragged.of(np.array(lengths), torch.device("cpu"))


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in bf16."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def real(layout: Ragged, heads: Tensor) -> Tensor:
    """What belongs to a sequence of (..., pairs, length, features)."""
    own = torch.arange(heads.shape[-2]) < layout.lengths.repeat_interleave(HEADS)[:, None]
    return heads[..., own, :]


def test_where_they_can_be_compiled_they_are(tmp_path: Path) -> None:
    """With gcc and AVX-512 nothing keeps them away, nor does gcc find anything to warn of."""
    if not has_bf16_instructions() or shutil.which("gcc") is None:
        pytest.skip("no AVX-512 with bf16, or no gcc")
    source = Path(native.__file__).with_name("kernels.c")
    if source.exists():
        setup = (REPOSITORY / "setup.py").read_text()
        features = [f"-m{name}" for name in re.findall(r'"(avx512\w+|fma)"', setup)]
        strict = ("-O3", "-fopenmp", "-fPIC", "-Wall", "-Wextra", "-Werror", '-DSOURCE="x"')
        command = ["gcc", *strict, *features, "-c", str(source), "-o", str(tmp_path / "o")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert native.why_not_native(BF16) is None, "install spafit-bench again"
    assert native.choose_kernels(BF16).name == "native"
    assert native.choose_kernels(Numerics(torch.device("cpu"), "fp32")).name == "torch"


def test_they_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """By an environment variable, as to compare."""
    monkeypatch.setenv(native.SWITCH, "torch")
    assert native.choose_kernels(BF16).name == "torch"
    assert native.why_not_native(BF16) == f"switched off by {native.SWITCH}=torch"


@compiled
@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("missing", "could not be compiled"),
        ("damaged", "cannot be loaded"),
        ("outdated", "another version of kernels.c"),
    ],
)
def test_without_them_torch_computes(
    what: str, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not compiled, not to be loaded, or of another version: the reason is told, runs go on."""
    there = native._find()
    (tmp_path / "kernels.c").write_text("/* another version */")
    (tmp_path / "kernels.so").write_bytes(b"\x7fELF" + bytes(100))
    found = {"missing": None, "damaged": str(tmp_path / "kernels.so"), "outdated": there}[what]
    if what == "outdated":
        monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    native._library.cache_clear()
    monkeypatch.setattr(native, "_find", lambda: found)
    assert native.choose_kernels(BF16).name == "torch"
    assert reason in (native.why_not_native(BF16) or "")
    native._library.cache_clear()


@compiled
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("scale", [0.5, 1.0])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.usefixtures("threads")
def test_split_and_join(
    kernels: Kernels, lengths: list[int], count: int, scale: float, biased: bool
) -> None:
    """The same numbers in the same places as with PyTorch; zero elsewhere."""
    layout = layout_of(lengths)
    x = random(layout.num_rows, count * WIDTH)
    bias = random(count * WIDTH, seed=1).float() if biased else None
    apart = kernels.split(x, bias, layout, HEADS, count, scale)
    expected = Kernels().split(x, bias, layout, HEADS, count, scale)
    torch.testing.assert_close(real(layout, apart), real(layout, expected), **EXACT)
    num_places = count * WIDTH * layout.num_tokens
    assert apart.count_nonzero() == real(layout, apart).count_nonzero() <= num_places
    together = kernels.join(apart, layout, 1 / scale)
    expected = Kernels().join(apart.clone(), layout, 1 / scale)
    torch.testing.assert_close(together, expected, **EXACT)
    tokens = layout.num_tokens
    torch.testing.assert_close(together[:tokens], plus(x[:tokens], bias), **EXACT)
    assert not together[tokens:].any()
    (gradient,) = kernels.split_gradient(x[:, :WIDTH], layout, HEADS, 0.5)[None]
    expected = Kernels().split_gradient(_zero_past(x[:, :WIDTH], tokens), layout, HEADS, 0.5)
    torch.testing.assert_close(gradient, expected, **EXACT)


def _zero_past(x: Tensor, tokens: int) -> Tensor:
    x = x.clone()
    x[tokens:] = 0
    return x


@compiled
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("queries", ["all", "first"])
@pytest.mark.usefixtures("threads")
def test_softmax_and_its_gradient(kernels: Kernels, lengths: list[int], queries: str) -> None:
    """Against float64 over a sequence's own keys, without dropout; rows sum to one."""
    layout = layout_of(lengths)
    asking = 1 if queries == "first" else layout.length
    scores = random(layout.size * HEADS, asking, layout.length) * 4
    own = layout.lengths.repeat_interleave(HEADS)
    keys = (torch.arange(layout.length) < own[:, None])[:, None, :]
    masked = scores.double().masked_fill(~keys, -torch.inf).requires_grad_()
    expected = masked.softmax(-1)
    probabilities, again, backward = kernels.softmax(scores.clone(), layout, None)
    assert again() is probabilities
    asked = torch.arange(asking) < (own[:, None] if queries == "all" else 1)
    wanted = expected.detach() * asked[..., None]
    torch.testing.assert_close(probabilities.double(), wanted, **ROUNDED)
    assert not probabilities[~keys.expand_as(probabilities)].any()

    gradient = random(*scores.shape, seed=1)
    (expected_gradient,) = torch.autograd.grad(
        expected, masked, gradient.double() * asked[..., None]
    )
    found = backward(gradient.clone())
    wanted = expected_gradient.nan_to_num()
    torch.testing.assert_close(found.double(), wanted, rtol=0.02, atol=6e-3)
    assert found.double().sub(wanted).norm() < 0.01 * wanted.norm() + 1e-9


@compiled
@pytest.mark.parametrize("queries", ["all", "first"])
@pytest.mark.parametrize("longest", [16, 32, 48, 64, 80, 144])
def test_dropout_of_probabilities(kernels: Kernels, queries: str, longest: int) -> None:
    """A tenth is dropped, independently; the gradient is that of the same elements dropped."""
    layout, dropout = layout_of([longest, longest // 2 + 1, longest - 3] * 12), Dropout.of(0.1)
    asking = 1 if queries == "first" else layout.length
    scores = random(layout.size * HEADS, asking, layout.length)
    torch.manual_seed(5)
    before = scores.clone()  # overwritten with the probabilities before dropout
    after, again, backward = kernels.softmax(before, layout, dropout)
    torch.manual_seed(5)
    torch.testing.assert_close(kernels.softmax(scores.clone(), layout, dropout)[0], after, **EXACT)
    assert again() is after
    there, dropped = before != 0, (before != 0) & (after == 0)
    assert torch.equal(after[~dropped], before[~dropped])
    _is_a_tenth(dropped[there])
    for axis in range(3):  # pairs of sequence and head, queries, keys: no two draw the same
        for shift in (1, 2) if dropped.shape[axis] > 2 else ():
            beside = dropped.roll(shift, axis)
            _is_a_tenth(beside[dropped & there.roll(shift, axis)])

    gradient = random(*scores.shape, seed=1)
    p, g = before.double(), gradient.double() * (after != 0)
    expected = p * (g - (g * p).sum(-1, keepdim=True))
    found = backward(gradient.clone())
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=2**-11)


def _is_a_tenth(dropped: Tensor) -> None:
    assert abs(dropped.double().mean() - 0.1) < 5 * (0.09 / len(dropped)) ** 0.5


@compiled
def test_dropout_does_not_depend_on_threads(kernels: Kernels) -> None:
    """Which elements, of a branch and of probabilities."""
    layout, dropout, norm = layout_of([60, 64, 31] * 8), Dropout.of(0.2), nn.LayerNorm(WIDTH)
    stream, branch = torch.zeros(900, WIDTH), torch.ones(900, WIDTH, dtype=torch.bfloat16)
    scores = random(layout.size * HEADS, layout.length, layout.length)
    before, found = torch.get_num_threads(), []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        torch.manual_seed(1)
        with torch.no_grad():
            after, *_ = kernels.softmax(scores.clone(), layout, dropout)
            z = stream.clone()  # overwritten with the sum
            kernels.add_norm(z, branch, None, norm, dropout, differentiable=True)
        found.append((after, z))
    torch.set_num_threads(before)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], **EXACT)


def philox(seed: int, row: int, block: int, rounds: int = 7) -> list[int]:
    """Philox4x32 in whole numbers (Salmon et al. 2011, section 3.3): eight of 16 bits."""
    word = (1 << 32) - 1
    a, b, c, d = block & word, 0, row & word, 0
    key = [seed & word, seed >> 32]
    for _ in range(rounds):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (q >> 32) ^ b ^ key[0], q & word, (p >> 32) ^ d ^ key[1], p & word
        key = [(key[0] + 0x9E3779B9) & word, (key[1] + 0xBB67AE85) & word]
    return [half for x in (a, b, c, d) for half in (x & 0xFFFF, x >> 16)]


@compiled
def test_what_is_dropped_is_what_philox_says(kernels: Kernels) -> None:
    """Element by element. Eight blocks lie together, their first halves before their second."""
    published = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)  # with ten rounds, all from zero
    assert philox(0, 0, 0, 10) == [h for x in published for h in (x & 0xFFFF, x >> 16)]
    rows, width, dropout = 5, 130, Dropout.of(0.3)
    torch.manual_seed(3)
    seed = draw_seed()
    torch.manual_seed(3)
    ones = torch.ones(rows, width, dtype=torch.bfloat16)
    with torch.no_grad():
        z, norm = torch.zeros(rows, width), nn.LayerNorm(width)
        kernels.add_norm(z, ones, None, norm, dropout, differentiable=True)
    for row in range(rows):
        numbers: list[int] = []
        for group in range(0, 24, 8):
            blocks = [philox(seed, row, group + number) for number in range(8)]
            numbers += [x for block in blocks for x in block[:4]]
            numbers += [x for block in blocks for x in block[4:]]
        wanted = [number % 2**15 < dropout.threshold for number in numbers[:width]]
        assert (z[row] != 0).tolist() == wanted


@compiled
@pytest.mark.parametrize("width", [WIDTH, 384, 1])
@pytest.mark.parametrize("rows", [1, 50, 600])
@pytest.mark.parametrize("probability", [0.0, 0.25])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.usefixtures("threads")
def test_add_norm_and_its_gradients(
    kernels: Kernels, width: int, rows: int, probability: float, biased: bool
) -> None:
    """Against autograd in float64, with the elements that the kernel dropped."""
    dropout = Dropout.of(probability) if probability else None
    norm = nn.LayerNorm(width, eps=1e-12 if width > 1 else 0.1)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
        stream, branch = random(rows, width).float(), random(rows, width, seed=1)
        bias = random(width, seed=4).float() * 0.777 if biased else None  # no sum with it is zero
        rest = (branch, bias, norm, dropout)
        z = stream.clone()
        y, low, backward = kernels.add_norm(z, *rest, differentiable=True)
    whole = branch.float() + (0 if bias is None else bias)
    added = z - stream
    mask = (added != 0) | (whole == 0) if dropout else torch.ones_like(added, dtype=torch.bool)
    scale = dropout.scale if dropout else 1.0

    exact = nn.LayerNorm(width, eps=norm.eps, dtype=torch.float64)
    exact.load_state_dict(norm.double().state_dict())
    norm.float()
    inputs = stream.double().requires_grad_(), whole.double().requires_grad_()
    expected = exact(inputs[0] + inputs[1] * mask * scale)
    torch.testing.assert_close(y.double(), expected.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(low, y.bfloat16(), **EXACT)
    if dropout is None:
        with torch.no_grad():
            again = kernels.add_norm(stream.clone(), *rest, differentiable=False)
        torch.testing.assert_close(again[:2], (y, low), **EXACT)

    gradient, more = random(rows, width, seed=2).float(), random(rows, width, seed=3)
    with torch.no_grad():
        found_stream, found_branch, found_norm, sums = backward(gradient, more)
    parameters = (*inputs, exact.weight, exact.bias)
    of_stream, of_branch, *of_norm = torch.autograd.grad(
        expected, parameters, gradient.double() + more.double()
    )
    torch.testing.assert_close(found_stream.double(), of_stream, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found_branch.double(), of_branch, rtol=0.01, atol=1e-3)
    torch.testing.assert_close([g.double() for g in found_norm], of_norm, rtol=1e-4, atol=1e-3)
    assert sums is not None
    torch.testing.assert_close(sums.double(), of_branch.sum(0), rtol=1e-3, atol=1e-4 * rows)
    assert torch.equal(found_branch != 0, mask & (found_branch != 0))


@compiled
def test_dropout_of_a_branch_has_its_rate_and_no_pattern(kernels: Kernels) -> None:
    """Elements, rows, columns and neighbours, against what independent draws would give."""
    torch.manual_seed(0)
    rows, width = 2000, 384
    dropout, norm = Dropout.of(0.1), nn.LayerNorm(width)
    ones = torch.ones(rows, width, dtype=torch.bfloat16)

    def drawn() -> Tensor:
        with torch.no_grad():
            z = torch.zeros(rows, width)
            kernels.add_norm(z, ones, None, norm, dropout, differentiable=True)
        assert set(z.unique().tolist()) == {0.0, torch.tensor(dropout.scale).item()}
        return (z == 0).double()

    one, two = drawn(), drawn()
    sd = (0.09 / one.numel()) ** 0.5
    assert abs(one.mean() - 0.1) < 5 * sd + 2**-16
    for a, b in ((one[1:], one[:-1]), (one[:, 1:], one[:, :-1]), (one, two)):
        assert abs((a * b).mean() - 0.01) < 5 * (0.01 / a.numel()) ** 0.5
    for axis, of in ((0, rows), (1, width)):
        assert abs(one.mean(axis).std() / (0.09 / of) ** 0.5 - 1) < 0.2
    for period in (8, 32, 64, 128):  # of numbers that are made together
        assert abs(one.view(-1, period).mean(0) - 0.1).max() < 5 * sd * period**0.5


@compiled
@pytest.mark.usefixtures("threads")
def test_gelu_and_its_gradient(kernels: Kernels) -> None:
    """Every number of bf16 up to 100 is rounded once from float64's; so is the slope."""
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    u = every[every.abs() <= 100].repeat(2)[: 25 * 2667].view(25, 2667)
    exact = u.double().requires_grad_()
    expected = F.gelu(exact)
    expected.sum().backward()
    assert exact.grad is not None
    y, same, backward = kernels.gelu(u.clone(), None, differentiable=True, output_needed=True)
    torch.testing.assert_close(y.double(), expected.detach(), rtol=2**-8, atol=1e-7)
    slope, _ = backward(torch.ones_like(u))
    torch.testing.assert_close(slope.double(), exact.grad, rtol=2**-8, atol=2e-7)
    assert same() is y
    again, *_ = kernels.gelu(u.clone(), None, differentiable=False, output_needed=False)
    torch.testing.assert_close(again, y, **EXACT)

    bias = random(2667, seed=1).float()
    moved = (u.double() + bias).requires_grad_()
    wanted = F.gelu(moved)
    wanted.sum().backward()
    wanted = wanted.detach()
    y, _, biased = kernels.gelu(u.clone(), bias, differentiable=True, output_needed=False)
    torch.testing.assert_close(y.double(), wanted, rtol=2**-8, atol=2e-7)
    assert moved.grad is not None
    slope, _ = biased(torch.ones_like(u))
    torch.testing.assert_close(slope.double(), moved.grad, rtol=2**-8, atol=2e-6)
    theirs, *_ = Kernels().gelu(u, bias, differentiable=False, output_needed=False)
    torch.testing.assert_close(theirs.double(), wanted, rtol=2**-6, atol=2**-7)

    gradient = random(25, 2667)
    found, sums = backward(gradient.clone())
    wanted = gradient.double() * exact.grad
    torch.testing.assert_close(found.double(), wanted, rtol=2**-7, atol=1e-6)
    assert sums is not None
    torch.testing.assert_close(sums.double(), wanted.sum(0), rtol=1e-2, atol=1e-2)
    *_, backward = Kernels().gelu(u, None, differentiable=True, output_needed=True)
    found, none = backward(gradient.clone())
    torch.testing.assert_close(found.double(), wanted, rtol=2**-7, atol=1e-6)
    assert none is None


@compiled
@pytest.mark.usefixtures("threads")
def test_sums(kernels: Kernels) -> None:
    """Over rows, and of a gradient that came in two parts."""
    x, more = random(700, WIDTH), random(700, WIDTH, seed=1)
    torch.testing.assert_close(kernels.column_sums(x), x.float().sum(0), rtol=1e-5, atol=1e-4)
    columns = random(300, 2 * WIDTH)[:, WIDTH:]  # not contiguous
    expected = columns.float().sum(0)
    torch.testing.assert_close(kernels.column_sums(columns), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(kernels.add_(x.float(), more), x.float() + more.float(), **EXACT)


@compiled
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible(kernels: Kernels, value: float) -> None:
    """So that a run that diverges is seen to."""
    layout, norm = layout_of([20, 9]), nn.LayerNorm(WIDTH)
    branch = random(layout.num_rows, WIDTH)
    branch[3, 5] = value
    with torch.no_grad():
        zeros = torch.zeros(layout.num_rows, WIDTH)
        y, low, _ = kernels.add_norm(zeros, branch, None, norm, None, differentiable=False)
    assert y[3].isnan().all()
    assert low[3].isnan().all()
    assert y[4].isfinite().all()
    scores = random(layout.size * HEADS, layout.length, layout.length)
    scores[0, 2, 4] = value
    probabilities, *_ = kernels.softmax(scores, layout, None)
    assert probabilities[0, 2, :20].isnan().any()
    assert probabilities[0, 3].isfinite().all()
    y, *_ = kernels.gelu(branch.clone(), None, differentiable=False, output_needed=False)
    assert y[3, 5].isnan() or y[3, 5] == value
    far = torch.full((layout.size * HEADS, 1, layout.length), -1e30, dtype=torch.bfloat16)
    far[:, :, 2] = 1e30
    one, *_ = kernels.softmax(far, layout, None)
    assert one[0, 0, :4].tolist() == [0, 0, 1, 0]


@compiled
@pytest.mark.parametrize("kind", ["bert", "distilbert"])
@pytest.mark.parametrize("method", ["full", "bitfit", "lora-ii", "spafit-ii"])
def test_a_step_is_that_of_torch(
    kind: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits and gradients without dropout: both as close to fp32, and so to one another."""
    no_dropout = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
    folder = checkpoint_of(tmp_path, kind, **(NO_DROPOUT if kind == "bert" else no_dropout))
    batch = batch_of(split_of([3, 14, 2, 7, 7], segments=kind == "bert"))
    exact = logits_and_gradients(build(folder, method, engine="fast"), batch)
    far = {}
    for name in ("native", "torch"):
        if name == "torch":
            monkeypatch.setenv(native.SWITCH, "torch")
        adapted = build(folder, method, precision="bf16", engine="fast")
        assert adapted.engine.kernels.name == name  # type: ignore[attr-defined]
        logits, gradients = logits_and_gradients(adapted, batch)
        off = [(gradients[name] - exact[1][name]).square().sum() for name in exact[1]]
        size = sum(gradient.square().sum() for gradient in exact[1].values())
        far[name] = (logits - exact[0]).abs().max(), (sum(off) / size) ** 0.5
    assert far["native"][0] < 2 * far["torch"][0] + 1e-3
    assert far["native"][1] < 1.5 * far["torch"][1] + 1e-3


@compiled
def test_training_goes_as_with_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without dropout the same loss curve within bf16; with it, the same again from its seed."""
    folder = checkpoint_of(tmp_path / "plain", "bert", **NO_DROPOUT)
    ours = trained(build(folder, "spafit-ii", precision="bf16", engine="fast"))
    dropping = checkpoint_of(tmp_path / "dropping", "bert")
    curves = []
    for _ in range(2):
        torch.manual_seed(0)
        adapted = build(dropping, "spafit-ii", precision="bf16", engine="fast")
        curves.append(trained(adapted).losses)
    assert curves[0] == curves[1] != ours.losses
    monkeypatch.setenv(native.SWITCH, "torch")
    theirs = trained(build(folder, "spafit-ii", precision="bf16", engine="fast"))
    assert ours.losses == pytest.approx(theirs.losses, abs=5e-3)
