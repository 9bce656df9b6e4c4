"""Deformable attention: the published numbers of both years, the oracle's own sensitivity, and facts of the papers."""

import copy
from typing import Any

import pytest
import torch
from conftest import slow_but
from golden import CASES, needs_golden, path_of
from torch import Tensor

from attention_zoo import create
from attention_zoo.config import parse_field
from attention_zoo.dispatch import part_of
from attention_zoo.layouts import SMALL, STL
from attention_zoo.mechanisms.dat import DAT, DATConfig
from attention_zoo.published.cases import Case, read_case

OFFICIAL = {  # official names of modules -> ours; q, k and v lie in one matrix
    "proj_q": "q",
    "proj_k": "k",
    "proj_v": "v",
    "proj_out": "proj",
    "conv_offset.0": "offset.conv",
    "conv_offset.1.norm": "offset.norm",
    "conv_offset.3": "offset.point",
    "rpe_table": "position",
}


def configure(ctor: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """Our configuration from the arguments of the official constructor; only the 2022 code counts stages."""
    is_2022 = "stage_idx" in ctor
    kinds = {"dwc_pe": "dwc", "fixed_pe": "fixed", "log_cpb": "log"}  # in the order in which the code asks
    position = next((ours for official, ours in kinds.items() if ctor.get(official)), "rpb")
    factor = ctor["offset_range_factor"]
    return {
        "num_heads": ctor["n_heads"],
        "variant": "2022" if is_2022 else "2023",
        "groups": ctor["n_groups"],
        "stride": ctor["stride"],
        "kernel": (9, 7, 5, 3)[ctor["stage_idx"]] if is_2022 else ctor["ksize"],
        "offset_range": factor if factor > 0 else "unbounded",
        "offsets": not ctor["no_off"],
        "position": position if ctor["use_pe"] and not ctor["no_off"] else "none",
        "map_size": (height, width),
    }


def rename(official: dict[str, Tensor], *, offsets: bool) -> dict[str, Tensor]:
    """Our state dict from the official one; without offsets their network exists and is never read."""
    ours = {}
    for name, value in official.items():
        (stem,) = (stem for stem in OFFICIAL if name == stem or name.startswith(f"{stem}."))
        pointwise = stem.startswith("proj_") and value.dim() == 4
        ours[OFFICIAL[stem] + name.removeprefix(stem)] = value.flatten(1) if pointwise else value
    for kind in ("weight", "bias"):
        ours[f"qkv.{kind}"] = torch.cat([ours.pop(f"{part}.{kind}") for part in "qkv"])
    return {name: value for name, value in ours.items() if offsets or not name.startswith("offset.")}


def official(case: Case) -> DAT:
    ctor = case.config["ctor"]
    config = configure(ctor, case.config["H"], case.config["W"])
    attention = create("dat", dim=ctor["n_heads"] * ctor["n_head_channels"], **config)
    attention.load_state_dict(rename(case.weights, offsets=config["offsets"]))
    return attention.eval()


def assert_close(found: Tensor, expected: Tensor, share: float) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= share * expected.abs().max()


@needs_golden
@pytest.mark.parametrize("name", [name for name, kind in CASES.items() if kind.endswith(".DAttentionBaseline")])
def test_official_output_gradient_and_points(name):
    case = read_case(path_of(name), name)
    attention = official(case)
    x = case.tensors["input"].requires_grad_()
    tokens = x.permute(0, 2, 3, 1)
    y = attention(tokens).permute(0, 3, 1, 2)
    assert_close(y, case.tensors["output"], share=1e-4)
    (gradient,) = torch.autograd.grad((y * case.tensors["probe"]).sum(), x)
    assert_close(gradient, case.tensors["grad_input"], share=5e-4)
    if attention.config.offsets:
        points, reference = case.tensors["extra/pos"], case.tensors["extra/reference"]
        assert_close(attention.points(part_of(attention.qkv, tokens, 0, attention.dim)), points, share=1e-4)
        grid = attention._grid(*attention.samples(*x.shape[2:]), x)
        assert_close(grid.expand_as(reference), reference, share=1e-6)


def drop_one_key(attention, x):
    points = attention.slow_points
    attention.slow_points = lambda x: points(x)[:, :, :-1]


def move_one_key(attention, x):
    def mutated(x):
        moved = points(x).clone()
        moved[:, -1, 0] = moved[:, -1, 1]
        return moved

    points = attention.slow_points
    attention.slow_points = mutated


def shift_one_bias(attention, x):
    def mutated(x):
        tokens = x.shape[1] * x.shape[2]
        shift = x.new_zeros(1, attention.num_heads, tokens, 4)
        shift[0, 0, 3, 1] = 0.1
        found = bias(x)
        return shift if found is None else found + shift

    bias = attention.slow_bias
    attention.slow_bias = mutated


def roll_one_query(attention, x):
    def mutated(x):
        q, k, v = project(x)
        q = q.clone()
        q[0, 0, 3] = q[0, 0, 3].roll(1)
        return q, k, v

    project = attention.project
    attention.project = mutated


@pytest.mark.parametrize("variant", ["2022", "2023"])
@pytest.mark.parametrize("position", ["rpb", "none"])
@pytest.mark.parametrize(
    "mutate", [drop_one_key, move_one_key, shift_one_bias, roll_one_query], ids=lambda m: m.__name__
)
def test_a_mutated_reference_is_noticed(small, mutate, position, variant):
    attention, x = small("dat", 3, 4, variant=variant, groups=2, stride=2, kernel=3, position=position, map_size=(3, 4))
    mutant = copy.deepcopy(attention)
    mutate(mutant, x)
    torch.testing.assert_close(attention(x), attention.reference(x), rtol=1e-9, atol=1e-10)
    assert (attention(x) - mutant.reference(x)).abs().max() > 1e-6


EVERY = [
    *(
        {"variant": variant, "position": position}
        for variant in ("2022", "2023")
        for position in ("rpb", "dwc", "none")
    ),
    *({"variant": "2023", "position": position} for position in ("fixed", "log")),
    {"variant": "2023", "position": "none", "offsets": False},
]
each_kind = pytest.mark.parametrize("config", EVERY, ids=lambda c: "-".join(map(str, c.values())))


@each_kind
@pytest.mark.parametrize("size", slow_but((1, 1), (9, 4), of=[(1, 1), (2, 2), (1, 5), (9, 4)]))
def test_every_stage_fits_maps_down_to_one_token(small, evaluate, config, size):
    for stage in (0, 3):
        placed = DATConfig(**config).at(stage, 0, SMALL).replace(groups=2, map_size=(3, 4))
        fields = {name: getattr(placed, name) for name in ("stride", "kernel", "groups", "map_size")}
        attention, x = small("dat", *size, **{**config, **fields})
        found, expected = evaluate(attention, x), evaluate(attention, x, "reference")
        for name, value in expected.items():
            assert value.isfinite().all()
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-10, msg=name)


def with_offsets(attention, factor):
    attention.offset.point.weight.detach().mul_(factor)
    return attention


def test_unmoved_points_are_the_centres_of_cells_in_2022_and_run_past_the_edge_in_2023(small):
    config = {"stride": 2, "offset_range": 2.0, "position": "none"}
    attention, x = small("dat", 8, 4, variant="2022", **config)
    points = with_offsets(attention, 0).points(x)
    assert points[0, 0, :, 0, 0].tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert points[0, 0, 0, :, 1].tolist() == [-0.5, 0.5]
    attention, x = small("dat", 8, 4, variant="2023", **config)
    points = with_offsets(attention, 0).points(x)
    torch.testing.assert_close(points[0, 0, :, 0, 0], torch.tensor([-2, 0, 2, 4]).double() / 3)
    assert points[0, 0, 0, :, 1].tolist() == [0, 2]
    attention, x = small("dat", 8, 4, **{**config, "variant": "2023", "offset_range": "unbounded"})
    assert with_offsets(attention, 0).points(x)[0, 0, 0, :, 1].tolist() == [0, 1]


@pytest.mark.parametrize("variant", ["2022", "2023"])
def test_an_offset_range_of_two_moves_a_point_by_one_step_at_most(small, variant):
    attention, x = small("dat", 8, 12, variant=variant, stride=2, offset_range=2.0)
    still = with_offsets(copy.deepcopy(attention), 0).points(x)
    step = still[0, 0, 1, 1] - still[0, 0, 0, 0]
    moved = (with_offsets(attention, 100).points(x) - still) / step
    assert 0.99 < moved.abs().max() <= 1 + 1e-12


@pytest.mark.parametrize("variant", ["2022", "2023"])
def test_unbounded_points_stay_on_the_map(small, variant):
    attention, x = small("dat", 8, 12, variant=variant, offset_range="unbounded")
    points = with_offsets(attention, 100).points(x)
    assert points.abs().max() <= 1
    assert (points.abs() > 0.99).any()


@pytest.mark.parametrize("groups", [1, 2])
def test_tokens_read_are_those_whose_change_moves_keys_of_every_head(small, groups):
    attention, x = small("dat", 6, 9, groups=groups, stride=3, offset_range=1.5)
    points = attention.points(part_of(attention.qkv, x, 0, 12)).detach()
    free = x.clone().requires_grad_()
    k = part_of(attention.qkv, attention.sample(free, points), 12, 24).unflatten(-1, (2, 6))
    reads = attention.connectivity(x)
    assert reads.shape == (2, 1, 1, 54)
    assert reads.any()
    assert not reads.all()
    for head in range(2):
        (gradient,) = torch.autograd.grad(k[:, :, head].abs().sum(), free, retain_graph=True)
        assert torch.equal(gradient.abs().sum(-1).flatten(1) > 0, reads[:, 0, 0])


def test_the_table_is_read_at_half_the_displacement(small):
    """A table that grows with its column by 1 per entry biases a logit by the columns between query and point."""
    attention, x = small("dat", 5, 7, variant="2023", stride=2, map_size=(5, 7))
    with torch.no_grad():
        attention.position.copy_(torch.arange(13.0).expand(2, 9, 13))
    points = attention.points(x)
    columns = (points[..., 1].flatten(1) + 1) / 2 * 6
    expected = torch.arange(7).repeat(5)[:, None] - columns[:, None] + 6
    torch.testing.assert_close(attention.bias(points, 5, 7), expected[:, None].expand(2, 2, 35, 12))


def test_a_fixed_table_is_its_own_map_and_a_constant_one_stays_constant(small):
    attention, x = small("dat", 4, 6, variant="2023", stride=2, position="fixed", map_size=(4, 6))
    assert torch.equal(attention.bias(attention.points(x), 4, 6)[0], attention.position)
    torch.nn.init.constant_(attention.position, 0.7)
    _, larger = small("dat", 9, 7)
    bias = attention.bias(attention.points(larger), 9, 7)
    torch.testing.assert_close(bias, torch.full((1, 2, 63, 20), 0.7, dtype=torch.float64))


def test_pooling_with_stride_1_is_attention_over_the_map(small):
    attention, x = small("dat", 4, 5, variant="2023", offsets=False, position="none")
    vanilla, _ = small("vanilla", 4, 5, qkv_bias=True)
    vanilla.load_state_dict(attention.state_dict())
    torch.testing.assert_close(attention(x), vanilla(x))


def test_stages_take_the_published_numbers():
    def stages(layout, **config):
        placed = [DATConfig(**config).at(stage, 0, layout) for stage in range(4)]
        return list(zip(*((c.groups, c.stride, c.kernel, c.map_size) for c in placed), strict=True))

    kernels, maps = (9, 7, 5, 3), ((56, 56), (28, 28), (14, 14), (7, 7))
    assert stages(STL) == [(1, 1, 3, 6), (8, 4, 1, 1), kernels, maps]
    assert stages(STL, variant="2023") == [(1, 3, 6, 12), (8, 4, 2, 1), kernels, maps]
    # the heads of DAT-T++, so its groups
    assert stages(SMALL, variant="2023")[0] == (1, 2, 4, 8)
    # its maps are a quarter as long: as many points as published need smaller strides
    assert stages(SMALL, variant="2023")[1] == stages(SMALL)[1] == (2, 1, 1, 1)
    assert stages(SMALL)[3] == ((16, 16), (8, 8), (4, 4), (2, 2))
    fixed = DATConfig(groups=2, stride=3, kernel=4, map_size=(5, 6))
    assert fixed.at(1, 0, STL) == fixed


def test_default_offset_range_follows_the_year():
    assert (DATConfig().reach, DATConfig(variant="2023").reach) == (2.0, None)
    assert DATConfig(offset_range="unbounded").reach is None
    read = [parse_field(DATConfig, "offset_range", text) for text in ("unbounded", "none", "1.5")]
    assert read == ["unbounded", None, 1.5]
    assert DATConfig(variant="2023", offset_range=1.5).reach == 1.5


def test_macs_written_out():
    attention = create("dat", dim=48, num_heads=4, groups=2, stride=2, kernel=5)
    macs = attention.macs(14, 21)
    assert macs.projection == 2 * (294 + 77) * 48**2
    assert macs.core == 2 * 294 * 77 * 48
    assert macs.routing == 77 * 48 * (5**2 + 2)
    assert macs.position == 0
    assert create("dat", dim=48, num_heads=4, position="dwc").macs(5, 6).position == 30 * 48 * 9
    log = create("dat", dim=48, num_heads=4, groups=2, variant="2023", stride=2, position="log")
    assert log.macs(4, 6).position == 2 * 24 * 6 * (2 * 32 + 32 * 2)  # per group, query and key


def test_a_kernel_as_large_as_the_stride_is_padded_in_2022_alone():
    sizes = {
        variant: create("dat", dim=8, num_heads=2, variant=variant, stride=3, kernel=3).samples(7, 9)
        for variant in ("2022", "2023")
    }
    assert sizes == {"2022": (3, 3), "2023": (2, 3)}
    attention = create("dat", dim=8, num_heads=2, variant="2023", stride=3, kernel=3)
    for refused in (lambda: attention.macs(2, 9), lambda: attention(torch.zeros(1, 2, 9, 8))):
        with pytest.raises(ValueError, match=r"2x9.*kernel=3.*variant=2023"):
            refused()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"variant": "2024"}, "variant takes 2022[|]2023; got '2024'"),
        ({"position": "lepe"}, "position takes rpb[|]dwc[|]fixed[|]log[|]none; got 'lepe'"),
        ({"groups": 0}, "groups must be at least 1, got 0"),
        ({"stride": 0}, "stride must be at least 1, got 0"),
        ({"kernel": -1}, "kernel must be at least 1, got -1"),
        ({"map_size": 0}, "map_size must be at least 1, got 0"),
        ({"map_size": (3, 0)}, r"map_size must be at least 1, got \(3, 0\)"),
        ({"offset_range": -1}, "offset_range must be 0 or more and finite, unbounded or free; got -1"),
        ({"offset_range": float("inf")}, "offset_range must be 0 or more and finite, unbounded or free; got inf"),
        ({"lepe": True}, "lepe must be off, got lepe=True"),
        ({"position": "log"}, "position=log and offsets=off need variant=2023, got variant=2022, position=log"),
        ({"position": "fixed"}, "need variant=2023, got variant=2022, position=fixed, offsets=on"),
        ({"position": "none", "offsets": False}, "got variant=2022, position=none, offsets=off"),
        ({"variant": "2023", "offsets": False}, "offsets=off has no points .* set position=none, got rpb"),
        ({"groups": 3}, "groups must divide num_heads, got groups=3, num_heads=2"),
    ],
)
def test_refused(config, message):
    with pytest.raises(ValueError, match=message):
        create("dat", dim=8, num_heads=2, **config)
