"""Lateralization LoRA: routing, causality, isolation, planted operator, kernels (L1, L2, L4 and L5 of its acceptance list)."""

import pytest
import torch
from lateral_model import KERNELS, TOKENS, codes, image, logits, noisy, text, with_adapter
from tiny import tiny_llama
from torch.nn import functional

from moesaic.errors import InputError
from moesaic.model.adapters import attach, bottleneck, lateral, layout, sequence
from moesaic.model.adapters.options import Options

PEFT = pytest.importorskip("peft")


@pytest.mark.parametrize("method", lateral.METHODS)
def test_l1_at_step_0_the_model_is_its_base_exactly(method):
    ids = [*text(5), *image(471), *text(3, 1), *image(472, 1)]
    base = logits(tiny_llama(), ids)
    assert torch.equal(logits(with_adapter(method=method), ids), base)
    assert not torch.equal(logits(noisy(with_adapter(method=method)), ids), base)


@pytest.mark.parametrize("kernel", KERNELS)
def test_l1_without_images_it_is_plain_linear_lora_exactly(kernel, tmp_path):
    """Plain peft, from the saved files, is the oracle: equal bits on text, other ones where there is an image."""
    model = noisy(with_adapter(kernel=kernel))
    attach.save(model, tmp_path)
    peft = PEFT.PeftModel.from_pretrained(tiny_llama(), str(tmp_path)).eval()
    assert torch.equal(logits(model, text(20)), logits(peft, text(20)))
    ids = [*text(5), *image(471)]
    found, plain = logits(model, ids), logits(peft, ids)
    assert torch.allclose(found[:6], plain[:6], atol=1e-5)  # text and begin token before the image
    assert not torch.allclose(found[6:], plain[6:], atol=1e-2)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kernel", KERNELS)
def test_gathered_taps_equal_a_convolution_on_the_grid(kernel, causal):
    """Two images of different grids in two rows, against torch's conv2d on each grid."""
    size, rank = 5, 6
    options = Options(rank=rank, kernel=kernel, size=size, causal=causal)
    sequences = sequence.Sequences(TOKENS, size, causal)
    layer = lateral.Lateral(torch.nn.Linear(10, 12), options, sequences)
    with torch.no_grad():
        for p in layer.update_parameters():
            p.add_(0.3 * torch.randn(p.shape))
    rows = [[*text(2), *image(471), *text(4), *image(472)], [*image(473), *text(6), *image(472, 2)]]
    ids = torch.tensor([row + [3] * (max(map(len, rows)) - len(row)) for row in rows])
    sequences.now = layout.find(ids, TOKENS, sequences.offsets, sequences.kept, None)
    z_N = torch.randn(int(sequences.now.is_image_BT.sum()), rank)
    found_N = layer.image(z_N)

    half, full_rrkk = size // 2, torch.zeros(rank, rank, size, size)
    kernel_module = layer.lora_image_kernel
    offsets = layout.taps(size, causal)
    if kernel in ("plain", "depthwise"):
        for (dy, dx), weight in zip(offsets, kernel_module.weight, strict=True):
            full_rrkk[:, :, dy + half, dx + half] = weight if kernel == "plain" else torch.diag(weight)
    else:
        mask = torch.zeros(size, size)
        for dy, dx in offsets:
            mask[dy + half, dx + half] = 1
        for channel, taps in enumerate(kernel_module.bank()):
            full_rrkk[channel, channel] = taps * mask
    start = 0
    for height, width in [(3, 4), (2, 2), (4, 3), (2, 2)]:
        z = z_N[start : start + height * width].T.view(1, rank, height, width)
        expected = functional.conv2d(z, full_rrkk, padding=half)[0].flatten(1).T
        assert torch.allclose(found_N[start : start + height * width], expected, atol=1e-5)
        start += height * width
    assert start == len(z_N)


def test_kernels_start_near_the_identity():
    z = torch.randn(7, 1, 6)
    for kernel in KERNELS:
        module = bottleneck.build(kernel, 6, 3, True)
        taps = torch.zeros(7, len(module.offsets), 6)
        taps[:, module.offsets.index((0, 0))] = z[:, 0]
        exact = kernel in ("plain", "depthwise")
        assert torch.allclose(module(taps), z[:, 0], atol=0 if exact else 1e-5), kernel
    with pytest.raises(InputError, match="derivative is 0 at the cell itself"):
        bottleneck.build("analytic", 4, 3, True, ("derivative",))


def test_what_is_an_image():
    """A code in no image, after a break, or beyond the last cell is text; a truncated image is an image as far as it goes."""
    lost = [*text(2), *codes(3)]
    beyond = [472, *codes(6)]
    broken = [472, *codes(1), *text(1), *codes(2)]
    found = [
        layout.find(torch.tensor([ids]), TOKENS, layout.taps(3, True), 9, None).is_image_BT[0].tolist()
        for ids in (lost, beyond, broken, image(471, cells=5))
    ]
    assert found[0] == [False] * 5
    assert found[1] == [False] + [True] * 4 + [False] * 2
    assert found[2] == [False, True, False, False, False]
    assert found[3] == [False] + [True] * 5


@pytest.mark.parametrize("kernel", KERNELS)
def test_l2_a_later_token_changes_nothing_before_it(kernel):
    model = noisy(with_adapter(kernel=kernel, size=5))
    ids = [*text(3), *image(471), *text(2, 1), *image(473, 1)]
    base = logits(model, ids)
    for place in (5, 8, 15, 25):
        other = list(ids)
        other[place] = other[place] - 1 if other[place] > 401 else other[place] + 1
        found = logits(model, other)
        assert torch.equal(found[:place], base[:place])
        assert not torch.allclose(found[place], base[place])


def test_l2_exactly_five_cells_see_a_changed_cell():
    """Causal 3x3 in the middle of a grid: itself, the next one, and three of the row below."""
    sequences = sequence.Sequences(TOKENS, 3, True)
    layer = lateral.Lateral(torch.nn.Linear(6, 6), Options(rank=3, kernel="plain"), sequences)
    torch.nn.init.normal_(layer.lora_image_kernel.weight)
    sequences.now = layout.find(torch.tensor([image(474)]), TOKENS, sequences.offsets, sequences.kept, None)
    z = torch.randn(64, 3)
    other = z.clone()
    other[3 * 8 + 4] += 1.0
    changed = (layer.image(z) != layer.image(other)).any(1).nonzero()[:, 0].tolist()
    assert changed == [3 * 8 + 4, 3 * 8 + 5, 4 * 8 + 3, 4 * 8 + 4, 4 * 8 + 5]


def test_a_centred_kernel_looks_ahead_and_is_kept_from_losses_on_images():
    model = noisy(with_adapter(causal=False))
    ids = [*text(3), *image(471), *text(4, 1)]
    other = list(ids)
    other[8] = 400 + (other[8] - 399) % 64
    base, found = (logits(model, item, use_cache=False) for item in (ids, other))
    assert torch.equal(found[:3], base[:3])
    assert not torch.allclose(found[4:8], base[4:8])
    sequence.check_targets(TOKENS, False, torch.tensor(text(5)))
    sequence.check_targets(TOKENS, True, torch.tensor(ids))
    with pytest.raises(InputError, match="a loss falls on image tokens"):
        sequence.check_targets(TOKENS, False, torch.tensor(ids))
    with pytest.raises(InputError, match="centred kernel needs all cells"):
        logits(model, [*text(3), *image(471, cells=4)], use_cache=True)


@pytest.mark.parametrize("kernel", KERNELS)
def test_l4_each_branch_learns_from_its_own_tokens_only(kernel):
    sequences = sequence.Sequences(TOKENS, 3, True)
    layer = lateral.Lateral(torch.nn.Linear(8, 8), Options(rank=4, kernel=kernel), sequences).train()
    with torch.no_grad():
        for p in layer.update_parameters():
            p.add_(0.3 * torch.randn(p.shape))
    ids = torch.tensor([[*text(4), *image(471), *text(3)]])
    sequences.now = layout.find(ids, TOKENS, sequences.offsets, sequences.kept, None)
    x, is_image = torch.randn(1, ids.shape[1], 8), sequences.now.is_image_BT[0]
    for modality, silent in ((~is_image, "lora_image"), (is_image, "lora_")):
        layer.zero_grad()
        layer(x)[0, modality].square().sum().backward()
        for name, p in layer.named_parameters():
            if not name.startswith("lora_"):
                continue
            quiet = name.startswith(silent) and (silent == "lora_image" or "image" not in name)
            assert p.grad is not None
            assert (not p.grad.any()) if quiet else p.grad.any(), name


def test_l4_one_image_never_changes_the_convolution_on_another():
    sequences = sequence.Sequences(TOKENS, 5, True)
    layer = lateral.Lateral(torch.nn.Linear(8, 8), Options(rank=4, kernel="plain", size=5), sequences)
    torch.nn.init.normal_(layer.lora_image_kernel.weight)
    ids = torch.tensor([[*image(471), *image(471, 1)]])  # nothing but the end and begin tokens between
    sequences.now = layout.find(ids, TOKENS, sequences.offsets, sequences.kept, None)
    z = torch.randn(24, 4)
    other = torch.cat([torch.randn(12, 4), z[12:]])
    assert torch.equal(layer.image(z)[12:], layer.image(other)[12:])
    assert not torch.allclose(layer.image(z)[:12], layer.image(other)[:12])


def test_text_batches_leave_gradients_of_zero_for_every_parameter():
    """Ranks with and without images can be summed: no parameter is left out of the graph in training."""
    model = noisy(with_adapter(kernel="mosaic")).train()
    model(input_ids=torch.tensor([text(6)]), use_cache=False).logits.sum().backward()
    for layer in attach.adapted(model):
        for name, p in layer.named_parameters():
            if name.startswith("lora_image"):
                assert p.grad is not None
                assert not p.grad.any()


def test_l5_a_planted_operator_is_found_by_the_convolution_only():
    """A hidden causal 3x3 rank-4 operator on independent tokens, d = 64, 8 x 8: 592 parameters find it, a linear map of any rank does not."""
    torch.manual_seed(0)
    width, rank, grid = 64, 4, (8, 8)
    down, up = torch.randn(rank, width) / 8, torch.randn(width, rank) / 2
    kernel = torch.randn(rank, rank, 3, 3) / 3
    kernel[:, :, 1, 2] = kernel[:, :, 2] = 0

    def data(images):
        x = torch.randn(images, 64, width)
        z = (x @ down.T).mT.reshape(images, rank, *grid)
        return x, functional.conv2d(z, kernel, padding=1).flatten(2).mT @ up.T

    (x, y), (x_test, y_test) = data(200), data(50)
    # the best linear map of full rank, in closed form: no LoRA can be better
    linear = torch.linalg.lstsq(x.flatten(0, 1), y.flatten(0, 1)).solution
    error = (x_test @ linear - y_test).square().sum() / y_test.square().sum()
    assert float(error) >= 0.5

    sequences = sequence.Sequences(TOKENS, 3, True)
    base = torch.nn.Linear(width, width, bias=False)
    torch.nn.init.zeros_(base.weight)
    layer = lateral.Lateral(base, Options(rank=rank, alpha=rank, kernel="plain"), sequences)
    learned = [p for name, p in layer.named_parameters() if name.startswith("lora_image")]
    assert sum(p.numel() for p in learned) == 592
    torch.nn.init.normal_(layer.lora_image_B.weight, std=0.1)
    optimizer = torch.optim.Adam(learned, 0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)

    def run(inputs):
        ids = torch.tensor([image(474)]).expand(len(inputs), -1)
        sequences.now = layout.find(ids, TOKENS, sequences.offsets, sequences.kept, None)
        framed = functional.pad(inputs, (0, 0, 1, 1))  # begin and end token
        return layer(framed)[:, 1:-1]

    for step in range(400):
        part = slice(step % 10 * 20, step % 10 * 20 + 20)
        loss = (run(x[part]) - y[part]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        error = (run(x_test) - y_test).square().sum() / y_test.square().sum()
    assert float(error) <= 0.01


@pytest.mark.parametrize("kernel", ["plain", "depthwise", "analytic", "mosaic"])
@pytest.mark.parametrize("causal", [True, False])
def test_a_drawn_kernel_is_what_a_channel_computes(kernel, causal):
    made = bottleneck.build(kernel, 4, 3, causal)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        found = made.drawn()
    assert found.shape == (4, 3, 3)
    for tap, (down, right) in enumerate(made.offsets):
        for channel in range(4):
            one = torch.zeros(1, len(made.offsets), 4)
            one[0, tap, channel] = 1.0
            with torch.no_grad():
                value = float(made(one)[0, channel])
            assert float(found[channel, 1 + down, 1 + right]) == pytest.approx(value, abs=1e-6)
    if causal:
        assert not found[:, 2, :].any()
        assert not found[:, 1, 2].any()
