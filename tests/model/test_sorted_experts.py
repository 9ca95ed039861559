"""The backend of a CPU against a plain sum in float64, its gradients against gradcheck, and when it hands over."""

import copy

import pytest
import torch
from compiling import compiler
from tiny import tiny_moe

from moesaic.errors import InputError
from moesaic.model import compiled_loops, execution, families, grouped, sorted_experts
from moesaic.model.expert_loops import PLAIN

WIDTH, NEURONS, EXPERTS = 12, 5, 4


def weights(seed=0, dtype=torch.float64):
    stream = torch.Generator().manual_seed(seed)
    gate_up = torch.randn(EXPERTS, 2 * NEURONS, WIDTH, generator=stream, dtype=torch.float64)
    down = torch.randn(EXPERTS, WIDTH, NEURONS, generator=stream, dtype=torch.float64)
    return gate_up.to(dtype).requires_grad_(), down.to(dtype).requires_grad_()


def routing(kind):
    """Experts [T, K] of a case."""
    stream = torch.Generator().manual_seed(1)
    random = torch.rand(37, EXPERTS, generator=stream)
    match kind:
        case "ragged":
            return random.topk(2).indices
        case "empty":  # experts 0 and 3 get nothing
            return torch.tensor([[1, 2], [2, 1], [1, 2]])
        case "overloaded":  # expert 2 is among every token's
            random[:, 2] = 2.0
            return random.topk(2).indices
        case "all on one":
            return torch.full((19, 1), 3)
        case "one token":
            return torch.tensor([[3, 0]])
        case "all experts":
            return random.argsort(dim=1)
        case "no token":
            return torch.zeros(0, 2, dtype=torch.long)
    raise ValueError(kind)


CASES = ("ragged", "empty", "overloaded", "all on one", "one token", "all experts", "no token")


def plain(x_TD, gate_up, down, index_TK, weight_TK):
    """A sum over tokens and experts, as the formula says it."""
    out = []
    for token, (experts, scores) in enumerate(zip(index_TK.tolist(), weight_TK, strict=True)):
        found = torch.zeros(WIDTH, dtype=x_TD.dtype)
        for expert, score in zip(experts, scores, strict=True):
            gate, up = (gate_up[expert] @ x_TD[token]).chunk(2)
            found = found + score * (down[expert] @ (torch.nn.functional.silu(gate) * up))
        out.append(found)
    return torch.stack(out) if out else x_TD.new_zeros(0, WIDTH)


def inputs(kind, dtype=torch.float64):
    index = routing(kind)
    stream = torch.Generator().manual_seed(2)
    x = torch.randn(len(index), WIDTH, generator=stream, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.rand(index.shape, generator=stream, dtype=torch.float64).to(dtype).requires_grad_()
    return x, *weights(dtype=dtype), index, weight


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("tile", [PLAIN.tile, 5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_output_and_gradients_equal_the_formula_in_float64(kind, dtype, tolerance, tile, monkeypatch):
    check(kind, dtype, tolerance, PLAIN._replace(tile=tile), monkeypatch)


@compiler
@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_compiled_output_and_gradients_equal_the_formula_in_float64(kind, dtype, tolerance, monkeypatch):
    check(kind, dtype, tolerance, compiled_loops.loops(), monkeypatch)


def check(kind, dtype, tolerance, loops, monkeypatch):
    exact, own = inputs(kind), inputs(kind, dtype)
    wanted, found = plain(*exact), sorted_experts.run(*own, loops)
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=10 * tolerance)
    for wasted in (sorted_experts.WASTED, 0):  # all experts at once, then one after the other
        monkeypatch.setattr(sorted_experts, "WASTED", wasted)
        with torch.no_grad():  # nothing is kept: other buffers, and a way of its own for one token
            again = sorted_experts.run(*own, loops)
        torch.testing.assert_close(again, found.detach(), rtol=tolerance, atol=tolerance)
    slope = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (found * slope.to(dtype)).sum().backward()
    if kind == "no token":  # the plain sum has no graph then
        assert all(float(item.grad.abs().sum()) == 0.0 for item in (own[1], own[2]))
        return
    (wanted * slope).sum().backward()
    for name, mine, reference in zip(("x", "gate_up", "down", "weight"), own[:3] + own[4:], exact[:3] + exact[4:], strict=True):  # fmt: skip
        torch.testing.assert_close(
            mine.grad.double(), reference.grad, rtol=tolerance, atol=10 * tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )  # fmt: skip
    if kind == "empty":
        assert float(own[1].grad[[0, 3]].abs().max()) == 0.0


@pytest.mark.parametrize("kind", ["empty", "overloaded", "one token", "all experts"])
def test_gradcheck(kind):
    x, gate_up, down, index, weight = inputs(kind)
    x, index, weight = (
        x.detach()[:4].requires_grad_(), index[:4], weight.detach()[:4].requires_grad_(),
    )  # fmt: skip
    assert torch.autograd.gradcheck(
        lambda *own: sorted_experts.run(*own[:3], index, own[3]), (x, gate_up, down, weight)
    )


@pytest.mark.parametrize("frozen", [0, 1, 2, 4])
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(frozen):
    own, whole = inputs("ragged"), inputs("ragged")
    own[frozen].requires_grad_(False)
    for item in (own, whole):
        sorted_experts.run(*item).square().sum().backward()
    assert own[frozen].grad is None
    for place in {0, 1, 2, 4} - {frozen}:
        assert torch.equal(own[place].grad, whole[place].grad)


def test_only_what_is_needed_is_kept_for_the_backward_pass():
    x, gate_up, down, index, weight = inputs("ragged")
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t if t.is_floating_point() else t, lambda t: t
    ):
        sorted_experts.run(x, gate_up, down, index, weight)
    slots = index.numel()
    assert sum(kept) == x.numel() + gate_up.numel() + down.numel() + slots + slots * 2 * NEURONS


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tiny_moe(tmp_path_factory.mktemp("moe"), shared=32).model


@pytest.fixture
def moe(made):
    execution.register()
    return copy.deepcopy(made)


def run(model, name, ids, autocast=False):
    """Logits, and the gradients by parameter."""
    model.set_experts_implementation(name)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(input_ids=ids).logits
    logits.float().square().mean().backward()
    return logits.detach().float(), {n: p.grad.clone() for n, p in model.named_parameters()}


IDS = torch.randint(3, 512, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "name", ["sorted", pytest.param("sorted-compiled", marks=compiler), "grouped_mm", "eager"]
)
def test_a_model_computes_in_float32_what_its_eager_experts_do_in_float64(moe, name):
    found, own = run(moe, name, IDS)
    moe.double()
    wanted, gradients = run(moe, "eager", IDS)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    for key, grad in own.items():
        error = (grad.double() - gradients[key]).norm() / gradients[key].norm().clamp_min(1e-12)
        assert error < 2e-4, key


@pytest.mark.parametrize("name", ["sorted", "grouped_mm"])
def test_experts_under_autocast_are_near_float64(moe, name):
    """Same routing on both sides. Under autocast `sorted` hands over to grouped_mm, which `grouped` makes run in bfloat16."""
    grouped.register()
    experts = next(families.parts(moe)).experts
    x = torch.randn(40, experts.hidden_dim, generator=torch.Generator().manual_seed(0))
    index = torch.rand(40, 4, generator=torch.Generator().manual_seed(1)).topk(2).indices
    weight = torch.full((40, 2), 0.5)

    def run_layer(backend, autocast):
        moe.set_experts_implementation(backend)
        own = x.detach().to(experts.down_proj.dtype).requires_grad_()
        experts.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = experts(own, index, weight.to(own.dtype))
        out.double().square().sum().backward()
        grads = [own.grad, experts.gate_up_proj.grad, experts.down_proj.grad]
        return [item.detach().double().clone() for item in (out, *grads)]

    found = run_layer(name, True)
    experts.double()
    for mine, wanted in zip(found, run_layer("eager", False), strict=True):
        assert 1e-4 < (mine - wanted).norm() / wanted.norm() < 0.02


def test_it_hands_over_what_it_is_not_made_for(moe, monkeypatch):
    experts = next(families.parts(moe)).experts
    x = torch.randn(3, experts.hidden_dim)
    assert sorted_experts.possible(experts, x)
    assert not sorted_experts.possible(experts, x.bfloat16())
    assert not sorted_experts.possible(experts, x.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not sorted_experts.possible(experts, x)
    experts._apply_gate = lambda both: both[:, : experts.intermediate_dim]  # as expert dropout does
    assert not sorted_experts.possible(experts, x)
    index, weight = torch.tensor([[0, 1], [1, 2], [3, 0]]), torch.full((3, 2), 0.5)
    called = []
    monkeypatch.setattr(sorted_experts, "run", lambda *own: called.append(len(own[0])) or own[0])
    moe.set_experts_implementation("sorted")
    found = experts(x, index, weight)
    moe.set_experts_implementation("grouped_mm")
    assert torch.equal(found, experts(x, index, weight))
    del experts._apply_gate
    moe.set_experts_implementation("sorted")
    with torch.no_grad():
        experts(x, index, weight)  # few rows per expert, and experts so small that all run at once
        with monkeypatch.context() as large:
            large.setattr(sorted_experts, "WASTED", 0)
            experts(x, index, weight)
            assert called == [3], "few rows of large experts go to the grouped backend"
        experts(x[:1], index[:1], weight[:1])
        experts(x[:1].repeat(32, 1), index[:1].repeat(32, 1), weight[:1].repeat(32, 1))
    experts(x, index, weight)
    assert called == [3, 1, 32, 3]


@compiler
def test_compiled_loops_run_any_number_of_tokens(moe, monkeypatch):
    experts = next(families.parts(moe)).experts
    index, weight = torch.tensor([[0, 1], [1, 2], [3, 0]]), torch.full((3, 2), 0.5)
    x = torch.randn(3, experts.hidden_dim)
    moe.set_experts_implementation("grouped_mm")
    with torch.no_grad():
        expected = experts(x, index, weight)
        for name in ("_one", "_together", "_stock"):
            monkeypatch.setattr(sorted_experts, name, lambda *_: pytest.fail("not by the compiled loops"))
        moe.set_experts_implementation("sorted-compiled")
        for rows in (slice(0, 1), slice(0, 2), slice(0, 3)):
            torch.testing.assert_close(experts(x[rows], index[rows], weight[rows]), expected[rows])


@pytest.mark.parametrize(
    ("experts", "chosen", "width", "neurons", "tokens", "expected"),
    [
        (16, 4, 576, 96, 16, True),  # SmolLM2
        (16, 4, 576, 96, 2, False),  # two tokens reach half of the experts
        (24, 9, 576, 32, 2, True),  # which costs little where experts are small
        (16, 4, 576, 96, 64, False),  # enough rows for a product of each expert's own
        (12, 6, 576, 64, 64, True),  # half of what is multiplied is wanted
        (16, 4, 2048, 352, 16, False),  # reading an expert's weights costs more than calling it
    ],
)
def test_all_experts_at_once_only_where_they_are_small_and_rows_few(
    experts, chosen, width, neurons, tokens, expected
):
    down = torch.empty(experts, width, neurons, device="meta")
    assert sorted_experts.together(down, tokens, chosen) == expected


@pytest.mark.parametrize("name", ["sorted", pytest.param("sorted-compiled", marks=compiler)])
def test_the_choice_by_device_is_logged_and_can_be_overridden(moe, caplog, tmp_path, monkeypatch, name):
    caplog.set_level("INFO")
    cpu = torch.device("cpu")
    execution._compiled.cache_clear()
    with monkeypatch.context() as tools:
        if name == "sorted":  # neither compiled before nor a compiler here
            tools.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
            tools.setenv("PATH", str(tmp_path))
        assert execution.apply(moe, "auto", cpu) == name
        assert moe.config._experts_implementation == name
        assert f"experts run by {name} on cpu (engine.experts: auto)" in caplog.text
        assert not any(record.levelname == "WARNING" for record in caplog.records)
    execution._compiled.cache_clear()
    assert execution.choose("auto", torch.device("cuda")) == "grouped_mm"
    assert execution.apply(moe, "eager", cpu) == "eager"
    with pytest.raises(InputError, match=r"engine\.experts: batched_mm .* use auto"):
        execution.apply(moe, "batched_mm", cpu)
    with pytest.raises(InputError, match=r"sonicmoe needs a CUDA device"):
        execution.choose("sonicmoe", cpu)
    with pytest.raises(InputError, match=r"sorted-compiled is for a CPU"):
        execution.choose("sorted-compiled", torch.device("cuda"))
    execution.apply(moe, "auto", cpu)
    moe.save_pretrained(tmp_path / "saved")
    assert "sorted" not in (tmp_path / "saved/config.json").read_text()  # plain transformers does not know it
