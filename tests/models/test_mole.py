"""The method against its formula: MoLE layers, the router, the balance loss and the trainable parameters."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from clipmole.config import CLIP_TOWERS, MoLEConfig, TowerConfig
from clipmole.errors import ConfigError
from clipmole.models.mole import Extension, MoLE, Router, add_mole, balance_loss
from clipmole.models.network import MoLENetwork
from clipmole.models.vit import MLP, ViT

TINY = TowerConfig(image_size=32, patch_size=16, width=24, depth=8, heads=2, mlp_width=48)


def random_mole(config: MoLEConfig, dtype: torch.dtype = torch.float64) -> MoLE:
    """A layer of width 24 whose `lora_B` is not zero, as after training."""
    torch.manual_seed(0)
    layer = MoLE(MLP(24, 48, "gelu"), 24, config).to(dtype)
    torch.nn.init.normal_(layer.lora_B)
    return layer


def loop_over_experts(layer: MoLE, config: MoLEConfig, x: Tensor) -> Tensor:
    """The method's formula written out, one LoRA and one token at a time."""
    y = layer.mlp(x)
    rows = 0
    if config.shared_rank:
        a, b = layer.lora_A[: config.shared_rank], layer.lora_B[:, : config.shared_rank]
        y = y + (config.alpha or config.shared_rank) / config.shared_rank * (x @ a.T @ b.T)
        rows = config.shared_rank
    for i, rank in enumerate(config.expert_ranks):
        a, b = layer.lora_A[rows : rows + rank], layer.lora_B[:, rows : rows + rank]
        rows += rank
        for batch in range(x.shape[0]):
            for token in range(x.shape[1]):
                scores = [
                    math.exp(float(layer.router.weight[e] @ x[batch, token])) for e in range(len(config.expert_ranks))
                ]
                kept = sorted(range(len(scores)), key=lambda e: -scores[e])[: config.top_k or len(scores)]
                gate = scores[i] / sum(scores[e] for e in kept) if i in kept else 0.0
                scaling = (config.alpha or rank) / rank
                y[batch, token] += gate * scaling * (b @ (a @ x[batch, token]))
    return y


@pytest.mark.parametrize(
    "config",
    [
        MoLEConfig(),
        MoLEConfig(shared_rank=0),
        MoLEConfig(expert_ranks=()),
        MoLEConfig(top_k=1),
        MoLEConfig(top_k=2, alpha=16.0),
        MoLEConfig(shared_rank=3, expert_ranks=(1, 5)),
    ],
    ids=["default", "no-shared", "lora-only", "top-1", "top-2-alpha-16", "two-experts"],
)
def test_equals_a_plain_loop_over_experts(config: MoLEConfig) -> None:
    layer = random_mole(config)
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    with torch.no_grad():
        difference = (layer(x) - loop_over_experts(layer, config, x)).abs().max()
        adapter = (layer(x) - layer.mlp(x)).abs().max()
    assert difference < 1e-10
    assert adapter > 0.1  # the adapter does something, so the comparison says something


@pytest.mark.parametrize("settings", [{}, {"top_k": 1}, {"top_k": 1, "renormalize": False}, {"router": "image"}])
def test_a_single_expert_is_plain_lora(settings: dict[str, object]) -> None:
    layer = random_mole(MoLEConfig(shared_rank=0, expert_ranks=(4,), alpha=8.0, **settings))  # type: ignore[arg-type]
    lora = random_mole(MoLEConfig(shared_rank=4, expert_ranks=(), alpha=8.0))
    lora.load_state_dict({name: tensor for name, tensor in layer.state_dict().items() if "router" not in name})
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    assert torch.equal(layer(x), lora(x))


@pytest.mark.parametrize(
    "config",
    [
        MoLEConfig(),
        MoLEConfig(top_k=1),
        MoLEConfig(expert_ranks=()),
        MoLEConfig(router="image"),
        MoLEConfig(router="local-global"),
        MoLEConfig(extension_ranks=(2,)),
    ],
)
def test_is_the_frozen_tower_bit_for_bit_at_the_start(config: MoLEConfig) -> None:
    torch.manual_seed(0)
    tower = ViT(TINY)
    torch.nn.init.normal_(tower.position_embedding)
    pixels = torch.randn(3, 3, 32, 32)
    adapted = copy.deepcopy(tower)
    assert len(add_mole(adapted, config)) == 2
    assert torch.equal(tower(pixels), adapted(pixels))


def test_gates_sum_to_one_and_are_float32_under_bfloat16() -> None:
    torch.manual_seed(0)
    router = Router(24, MoLEConfig()).bfloat16()
    gates = router(torch.randn(4, 7, 24, dtype=torch.bfloat16))
    assert gates.dtype == torch.float32
    assert torch.allclose(gates.sum(-1), torch.ones(4, 7), atol=1e-6)
    assert (gates > 0).all()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_leaves_exactly_k_renormalised_gates_the_largest(k: int) -> None:
    torch.manual_seed(0)
    dense, sparse = Router(24, MoLEConfig()), Router(24, MoLEConfig(top_k=k))
    sparse.load_state_dict(dense.state_dict())
    x = torch.randn(4, 7, 24)
    full, gates = dense(x), sparse(x)
    assert ((gates > 0).sum(-1) == k).all()
    assert torch.allclose(gates.sum(-1), torch.ones(4, 7), atol=1e-6)
    assert torch.equal(gates.argmax(-1), full.argmax(-1))
    smallest_kept = torch.where(gates > 0, full, torch.inf).amin(-1)
    largest_dropped = torch.where(gates > 0, -torch.inf, full).amax(-1)
    assert (smallest_kept >= largest_dropped).all()


def test_balance_loss_is_one_when_uniform_and_the_number_of_experts_when_collapsed() -> None:
    uniform = torch.full((2, 5, 4), 0.25)
    collapsed = torch.zeros(2, 5, 4)
    collapsed[..., 2] = 1
    assert balance_loss(uniform) == pytest.approx(1.0)
    assert balance_loss(collapsed) == pytest.approx(4.0)
    halves = torch.cat([collapsed, collapsed.roll(1, dims=-1)])  # each token collapsed, the mean is not
    assert balance_loss(halves) == pytest.approx(2.0)


def test_balance_loss_is_one_plus_the_squared_coefficient_of_variation_whatever_the_gates_sum_to() -> None:
    gates = torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(0))
    mean = gates.mean((0, 1))
    assert balance_loss(gates) == pytest.approx(1 + float(mean.var(unbiased=False) / mean.mean() ** 2), rel=1e-6)
    assert balance_loss(0.1 * gates) == pytest.approx(float(balance_loss(gates)), rel=1e-6)


@pytest.mark.parametrize("k", [1, 2])
def test_top_k_without_renormalising_leaves_the_softmax_as_it_was(k: int) -> None:
    torch.manual_seed(0)
    dense, sparse = Router(24, MoLEConfig()), Router(24, MoLEConfig(top_k=k, renormalize=False))
    sparse.load_state_dict(dense.state_dict())
    x = torch.randn(4, 7, 24)
    full, gates = dense(x), sparse(x)
    assert torch.equal(gates, full * (full >= full.sort(-1, descending=True).values[..., k - 1 : k]))
    assert (gates.sum(-1) < 1).all()


def test_gates_of_an_image_are_the_softmax_of_its_class_token() -> None:
    torch.manual_seed(0)
    router = Router(24, MoLEConfig(router="image"))
    x = torch.randn(4, 7, 24)
    gates = router(x)
    assert gates.shape == (4, 7, 3)
    for image in range(4):
        expected = torch.softmax(router.weight @ x[image, 0], dim=0)
        assert torch.allclose(gates[image], expected.expand(7, 3), atol=1e-6)


def test_groups_of_experts_have_a_softmax_each() -> None:
    torch.manual_seed(0)
    config = MoLEConfig(expert_ranks=(1, 2, 3, 4, 5), expert_groups=(2, 3))
    router, x = Router(24, config), torch.randn(4, 24)
    scores = x @ router.weight.T
    expected = torch.cat([scores[:, :2].softmax(-1), scores[:, 2:].softmax(-1)], dim=-1)
    assert torch.allclose(router(x), expected, atol=1e-6)


def test_local_global_gates_are_a_sigmoid_of_the_token_times_one_of_the_experts_mean() -> None:
    """y = MLP(x) + shared(x) + sum_i sigmoid(Phi x)_i sigmoid(w_i . mean_t B_i A_i x_t) s_i B_i A_i x, in a loop."""
    layer = random_mole(MoLEConfig(router="local-global", alpha=16.0))
    torch.nn.init.normal_(layer.router.global_weight)
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    expected = layer.mlp(x) + 4 * (x @ layer.lora_A[:4].T @ layer.lora_B[:, :4].T)  # 16 / 4
    gates, rows = [], 4
    for i, rank in enumerate((2, 4, 8)):
        out = x @ layer.lora_A[rows : rows + rank].T @ layer.lora_B[:, rows : rows + rank].T
        rows += rank
        of_image = torch.sigmoid(out.mean(1) @ layer.router.global_weight[i])
        gates.append(torch.sigmoid(x @ layer.router.weight[i]) * of_image[:, None])
        expected = expected + 16 / rank * gates[-1][..., None] * out
    layer.keep_gates = True
    assert (layer(x) - expected).abs().max() < 1e-10
    assert (layer.gates - torch.stack(gates, -1)).abs().max() < 1e-10
    assert (layer.route(x) - layer.gates).abs().max() < 1e-12


def test_local_global_gates_begin_at_a_quarter_where_the_router_is_zero() -> None:
    layer = random_mole(MoLEConfig(router="local-global"))
    torch.nn.init.zeros_(layer.router.weight)
    assert torch.equal(layer.route(torch.randn(2, 5, 24, dtype=torch.float64)), torch.full((2, 5, 3), 0.25).double())


def test_local_global_gates_do_not_compete() -> None:
    layer, x = random_mole(MoLEConfig(router="local-global")), 0.1 + torch.rand(2, 5, 24, dtype=torch.float64)
    layer.router.weight.data.fill_(1e3)
    gates = layer.route(x)
    assert (gates.sum(-1) > 1).all()
    layer.router.weight.data[0] = -1e3
    closed = layer.route(x)
    assert torch.equal(closed[..., 0], torch.zeros(2, 5).double())
    assert torch.equal(closed[..., 1:], gates[..., 1:])


def test_noise_moves_the_gates_in_training_alone() -> None:
    torch.manual_seed(0)
    router, x = Router(24, MoLEConfig(router_noise=0.5)), torch.randn(4, 1000, 24)
    clean = router.eval()(x)
    assert torch.equal(router(x), clean)
    noisy = router.train()(x).detach()
    ratio = (noisy / clean.detach()).log()
    drawn = ratio - ratio.mean(-1, keepdim=True)
    assert float(drawn.var()) == pytest.approx(0.25 * 2 / 3, rel=0.05)  # three draws less their mean
    assert torch.allclose(noisy.sum(-1), torch.ones(4, 1000), atol=1e-5)
    router.requires_grad_(False)  # as in a detector that is extended
    assert torch.equal(router(x), clean)


def test_noise_is_drawn_once_for_the_gates_that_are_used_and_those_that_are_balanced() -> None:
    network = MoLENetwork(ViT(TINY), MoLEConfig(router_noise=1.0)).train()
    network.keep_gates(True)
    crops = torch.rand(2, 3, 32, 32)
    torch.manual_seed(0)
    network(crops)
    after = torch.rand(1)
    torch.manual_seed(0)
    for _ in network.mole_layers:
        torch.randn(2, 5, 3)
    assert torch.equal(torch.rand(1), after)


@pytest.mark.parametrize(
    "config",
    [MoLEConfig(router="image"), MoLEConfig(router="image", shared_rank=0, top_k=1), MoLEConfig(expert_ranks=())],
)
def test_folded_into_one_matrix_an_image_the_layer_gives_the_same(config: MoLEConfig) -> None:
    layer = random_mole(config, torch.float32)
    x = torch.randn(3, 7, 24)
    assert (layer(x) - layer.mlp(x)).abs().max() > 0.1
    assert (layer.folded(x) - layer(x)).abs().max() < 1e-5


@pytest.mark.parametrize("config", [MoLEConfig(), MoLEConfig(router="image", extension_ranks=(2,))])
def test_gates_of_each_token_do_not_fold(config: MoLEConfig) -> None:
    with pytest.raises(ValueError, match="folded: gates differ from token to token"):
        random_mole(config, torch.float32).folded(torch.randn(3, 7, 24))


EXTENDED = MoLEConfig(extension_ranks=(3,), alpha=6.0)


def test_an_extension_adds_its_lora_times_a_sigmoid_of_each_token() -> None:
    layer = random_mole(EXTENDED)
    new = layer.extensions[0]
    for parameter in new.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    layer.keep_gates = True
    y = layer(x)
    gates = layer.gates
    old = loop_over_experts(layer, EXTENDED, x)
    for batch in range(2):
        for token in range(5):
            h = 1 / (1 + math.exp(-float(new.gate_weight @ x[batch, token] + new.gate_bias)))
            old[batch, token] += h * 6 / 3 * (new.lora_B @ (new.lora_A @ x[batch, token]))
            assert float(gates[batch, token, 3]) == pytest.approx(h, abs=1e-12)
    assert (y - old).abs().max() < 1e-10


@pytest.mark.parametrize(
    "config",
    [
        MoLEConfig(),
        MoLEConfig(expert_ranks=()),
        MoLEConfig(shared_rank=0, expert_ranks=()),
        MoLEConfig(router="local-global"),
        MoLEConfig(extension_ranks=(2,)),
    ],
    ids=["mole", "lora", "probe", "local-global", "extended before"],
)
def test_with_its_gates_forced_to_zero_the_extended_detector_is_the_old_one_bit_for_bit(config: MoLEConfig) -> None:
    torch.manual_seed(0)
    tower = ViT(TINY)
    old = MoLENetwork(copy.deepcopy(tower), config).eval()
    for parameter in old.adapter_parameters().values():
        torch.nn.init.normal_(parameter)
    grown = config.model_copy(update={"extension_ranks": (*config.extension_ranks, 4)})
    new = MoLENetwork(tower, grown).eval()
    _, unexpected = new.load_state_dict(old.adapter_parameters(), strict=False)
    assert not unexpected
    for layer in new.mole_layers:
        torch.nn.init.normal_(layer.extensions[-1].lora_B)
    crops = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        before, beside = old(crops), new(crops)
        for layer in new.mole_layers:
            layer.extensions[-1].gate_bias.fill_(-1e4)  # sigmoid is then 0 exactly
        assert torch.equal(new(crops), before)
    assert not torch.equal(beside, before)


def test_an_extension_grows_a_block_by_2rd_plus_d_plus_1_parameters_and_begins_near_the_old_detector() -> None:
    extension = Extension(24, rank=4)
    assert sum(p.numel() for p in extension.parameters()) == 4 * 2 * 24 + 24 + 1
    x = torch.randn(2, 5, 24)
    assert extension.gate(x).flatten().tolist() == pytest.approx([1 / (1 + math.exp(4))] * 10)
    assert torch.equal(extension(x, extension.gate(x)), torch.zeros(2, 5, 24))


def test_only_the_extension_that_came_last_is_trained() -> None:
    network = MoLENetwork(ViT(TINY), MoLEConfig(extension_ranks=(2, 4)))
    whole = set(network.adapter_parameters())
    network.train_last_extension_alone()
    trained = network.trained_parameters()
    assert set(trained) == {
        f"tower.blocks.{block}.mlp.extensions.1.{part}"
        for block in (6, 7)
        for part in ("lora_A", "lora_B", "gate_weight", "gate_bias")
    }
    assert sum(p.numel() for p in trained.values()) == 2 * (4 * 2 * 24 + 24 + 1)
    assert set(network.adapter_parameters()) == whole > set(trained)


def test_the_detector_averages_the_balance_loss_over_blocks_and_is_zero_without_a_router() -> None:
    torch.manual_seed(0)
    crops = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    detector = MoLENetwork(ViT(TINY), MoLEConfig())
    detector.keep_gates(True)
    detector(crops)
    expected = [3 * float(g.detach().mean((0, 1)).square().sum()) for g in detector.gates()]
    assert len(expected) == 2
    assert float(detector.balance_loss().detach()) == pytest.approx(sum(expected) / 2)
    lora = MoLENetwork(ViT(TINY), MoLEConfig(expert_ranks=()))
    lora.keep_gates(True)
    lora(crops)
    assert float(lora.balance_loss()) == 0


def gradients(config: MoLEConfig, full_finetune: bool = False) -> set[str]:
    """Names of the parameters that a backward pass through a tiny detector reaches."""
    torch.manual_seed(0)
    detector = MoLENetwork(ViT(TINY), config, full_finetune)
    for layer in detector.mole_layers:
        torch.nn.init.normal_(layer.lora_B)
    detector.keep_gates(True)
    logits = detector(torch.rand(2, 3, 32, 32))
    (logits.square().sum() + detector.balance_loss()).backward()
    return {n for n, p in detector.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def test_only_loras_routers_and_head_receive_gradients() -> None:
    adapted = {f"tower.blocks.{block}.mlp.{name}" for block in (6, 7) for name in ("lora_A", "lora_B", "router.weight")}
    assert gradients(MoLEConfig()) == adapted | {"head.weight", "head.bias"}
    assert gradients(MoLEConfig(shared_rank=0, expert_ranks=())) == {"head.weight", "head.bias"}


def test_full_finetuning_reaches_the_whole_tower() -> None:
    reached = gradients(MoLEConfig(shared_rank=0, expert_ranks=()), full_finetune=True)
    detector = MoLENetwork(ViT(TINY), MoLEConfig(shared_rank=0, expert_ranks=()))
    # The class token's key bias shifts all scores of a softmax alike, but each qkv is one parameter here.
    assert reached == {name for name, _ in detector.named_parameters()}


@pytest.mark.parametrize(
    ("preset", "trained", "blocks"),
    [("vit-l-14", 240_385, range(18, 24)), ("vit-b-16", 3 * (18 * 1536 + 3 * 768) + 513, range(9, 12))],
)
def test_trainable_parameters_of_the_presets(preset: str, trained: int, blocks: range) -> None:
    with torch.device("meta"):
        detector = MoLENetwork(ViT(CLIP_TOWERS[preset]), MoLEConfig())
    assert sum(p.numel() for p in detector.trained_parameters().values()) == trained
    assert detector.config.block_indices(CLIP_TOWERS[preset].depth) == tuple(blocks)


def test_vit_l_14_trains_0_079_percent_of_the_tower() -> None:
    with torch.device("meta"):
        tower = ViT(CLIP_TOWERS["vit-l-14"])
    assert round(240_385 / sum(p.numel() for p in tower.parameters()) * 100, 3) == 0.079


@pytest.mark.parametrize("blocks", [(8,), (-1,), (1, 1), (), 9, 0])
def test_blocks_that_the_tower_does_not_have_are_refused(blocks: tuple[int, ...] | int) -> None:
    with pytest.raises(ConfigError, match="blocks"):
        add_mole(ViT(TINY), MoLEConfig(blocks=blocks))


@pytest.mark.parametrize(("blocks", "indices"), [((2, 0), (0, 2)), (3, (5, 6, 7)), (None, (6, 7))])
def test_blocks_may_be_named_or_counted_from_the_end(
    blocks: tuple[int, ...] | int | None, indices: tuple[int, ...]
) -> None:
    tower = ViT(TINY)
    add_mole(tower, MoLEConfig(blocks=blocks))
    assert tuple(i for i, block in enumerate(tower.blocks) if isinstance(block.mlp, MoLE)) == indices


def test_prefix_then_suffix_is_the_forward_pass() -> None:
    torch.manual_seed(0)
    detector = MoLENetwork(ViT(TINY), MoLEConfig())
    crops = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert detector.first_adapted_block == 6
    assert torch.equal(detector.suffix(detector.prefix(crops)), detector(crops))
    assert torch.allclose(detector(crops), detector(crops / 255), atol=1e-6)


def test_linear_probe_with_univfd_head_is_a_matrix_product(shared_dir: Path) -> None:
    """No experts: UnivFD's published head, on a random tower of CLIP ViT-L/14's shape (2 of its 24 blocks)."""
    head = torch.load(shared_dir / "reference" / "univfd_fc_weights.pth", map_location="cpu", weights_only=True)
    torch.manual_seed(0)
    tower = ViT(CLIP_TOWERS["vit-l-14"].model_copy(update={"depth": 2}))
    detector = MoLENetwork(tower, MoLEConfig(shared_rank=0, expert_ranks=())).eval()
    detector.head.load_state_dict(head)
    crops = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        features = tower((crops - detector.mean) / detector.std)
        logits = detector(crops)
    assert features.shape == (2, 768)
    assert torch.allclose(logits, features @ head["weight"][0] + head["bias"], atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        MoLEConfig(),
        MoLEConfig(expert_ranks=()),
        MoLEConfig(shared_rank=0, expert_ranks=()),
        MoLEConfig(router="image"),
        MoLEConfig(router="local-global"),
        MoLEConfig(extension_ranks=(3,)),
        MoLEConfig(expert_ranks=(), extension_ranks=(3, 1)),
    ],
    ids=["mole", "lora", "probe", "image", "local-global", "extended", "extended lora"],
)
@pytest.mark.parametrize("keep_gates", [False, True])
def test_leaving_out_the_last_blocks_patches_changes_nothing(config: MoLEConfig, keep_gates: bool) -> None:
    torch.manual_seed(0)
    detector = MoLENetwork(ViT(TINY), config).double().eval()
    torch.nn.init.normal_(detector.tower.position_embedding)
    for parameter in detector.adapter_parameters().values():
        torch.nn.init.normal_(parameter)
    detector.keep_gates(True)
    crops = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    expected = detector.head(detector.tower((crops - detector.mean) / detector.std)).squeeze(-1)
    gates = [g.clone() for g in detector.gates()]
    detector.keep_gates(keep_gates)
    assert (detector(crops) - expected).abs().max() < 1e-12
    assert len(detector.gates()) == (len(gates) if keep_gates else 0)
    for kept, whole in zip(detector.gates(), gates, strict=False):  # the last block's too are of all tokens
        assert kept.shape == (3, 5, len(config.gated_ranks))
        assert (kept - whole).abs().max() < 1e-12


READ = MoLEConfig(head_blocks=(0, 3, 6))


def network_that_reads(config: MoLEConfig = READ) -> MoLENetwork:
    torch.manual_seed(0)
    tower = ViT(TINY)
    torch.nn.init.normal_(tower.position_embedding)
    torch.nn.init.normal_(tower.class_token)
    network = MoLENetwork(tower, config).eval()
    for layer in network.mole_layers:
        torch.nn.init.normal_(layer.lora_B, std=0.1)
    return network


@torch.no_grad()
def test_the_head_reads_the_class_tokens_of_its_blocks() -> None:
    network = network_that_reads()
    crops = torch.rand(2, 3, 32, 32)
    tokens, features = network.embed(crops), []
    for index, block in enumerate(network.tower.blocks):
        tokens = block(tokens)
        if index in (0, 3, 6):
            x = tokens[:, 0]
            features.append((x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt())
    weights = network.head.weight[0].split([24, 24, 24, 24])
    expected = network.tower.feature(tokens) @ weights[0] + network.head.bias
    expected = expected + sum(x @ w for x, w in zip(features, weights[1:], strict=True))
    assert torch.allclose(network(crops), expected, atol=1e-5)
    assert network.head.weight.numel() == 4 * 24


@pytest.mark.parametrize("config", [READ, MoLEConfig(shared_rank=0, expert_ranks=(), head_blocks=(1, 2)), MoLEConfig()])
@torch.no_grad()
def test_prefix_and_suffix_together_are_the_network(config: MoLEConfig) -> None:
    network = network_that_reads(config)
    crops = torch.rand(3, 3, 32, 32)
    tokens = network.prefix(crops)
    assert tokens.shape[1] == 5 + sum(block < network.first_adapted_block for block in network.head_blocks)
    assert torch.allclose(network.suffix(tokens), network(crops), atol=1e-6)


def test_all_head_blocks_are_those_before_the_last() -> None:
    network = MoLENetwork(ViT(TINY), MoLEConfig(head_blocks="all"))
    assert network.config.head_blocks == tuple(range(TINY.depth - 1))
    assert network.head.in_features == TINY.depth * TINY.width


@pytest.mark.parametrize("blocks", [(7,), (3, 1), (2, 2), (-1,)])
def test_head_blocks_that_are_not_there_are_refused(blocks: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="head_blocks"):
        MoLENetwork(ViT(TINY), MoLEConfig(head_blocks=blocks))
