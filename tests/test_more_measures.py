"""The measures that a sweep takes by name: launches, latency of one image, the largest batch, activations."""

from dataclasses import replace

import pytest
import torch
from small_work import CPU, WORK
from torch import nn

import attention_zoo
from ablations import Cell
from attention_zoo.counting import count_activations
from runners.cells.models import build_model, keys_per_query
from runners.cells.run import Job, run_job
from runners.machine.conditions import Conditions
from runners.machine.failures import OutOfMemory
from runners.measure import largest_batch, latency, rounds
from runners.measure.launches import count_launches
from runners.measures import DEFAULT_MEASURES, MEASURES
from runners.store.store import open_store
from runners.table import load


def test_the_default_sweep_has_the_four_measures_that_it_always_had():
    assert DEFAULT_MEASURES == ("flops", "throughput", "memory", "accuracy")
    assert {*MEASURES} - {*DEFAULT_MEASURES} == {"launches", "latency", "max_batch", "energy"}


# --- launches


def test_launches_are_the_operators_that_compute_or_move_data():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    found = count_launches(model, (3, 8, 8), CPU, Conditions())
    # flatten and the transposed weight of the linear layer are views
    assert found == {"kernel_launches": 3, "kernels": "convolution:1;relu:1;addmm:1"}
    assert model.training


def test_a_product_of_matrices_by_parts_is_one_launch():
    class Product(nn.Module):
        def forward(self, x):
            return x.flatten(2) @ torch.ones(64, 2)

    assert count_launches(Product(), (3, 8, 8), CPU, Conditions())["kernels"] == "ones:1;mm:1"


def test_launches_of_a_network_are_those_of_its_parts():
    mixer = attention_zoo.create("swin", dim=8, num_heads=2, window=2)
    one, two = (
        count_launches(
            nn.Sequential(nn.Unflatten(3, (-1, 8)), nn.Flatten(2, 3), *[mixer] * n), (4, 4, 8), CPU, Conditions()
        )
        for n in (1, 2)
    )
    assert two["kernel_launches"] == 2 * one["kernel_launches"] > 10


# --- latency of one image


def test_higher_percentiles_need_ten_forwards_above_them():
    times = [float(i) for i in range(1, 1001)]
    assert latency.percentiles(times) == pytest.approx(
        {"infer_latency_ms_p50": 500.5, "infer_latency_ms_p90": 900.1, "infer_latency_ms_p99": 990.01}
    )
    few = latency.percentiles(times[:999])
    assert few["infer_latency_ms_p99"] is None and few["infer_latency_ms_p90"] == pytest.approx(899.2)
    assert latency.percentiles(times[:99])["infer_latency_ms_p90"] is None
    assert latency.percentiles(times[:6]) == {
        "infer_latency_ms_p50": 3.5,
        "infer_latency_ms_p90": None,
        "infer_latency_ms_p99": None,
    }


def test_one_image_is_timed_whatever_the_batch(monkeypatch):
    shapes = []
    infer = rounds.Contender.infer
    monkeypatch.setattr(latency, "FORWARDS", 30)
    monkeypatch.setattr(rounds.Contender, "infer", lambda self: (shapes.append(self.images.shape[0]), infer(self))[1])
    found = latency._time(replace(WORK, input_shape=(1, 3, 8, 8)))
    assert len(found["ms"]) == 30 and min(found["ms"]) > 0 and set(shapes) == {1}


def test_a_model_that_is_slower_than_the_budget_has_a_median(monkeypatch):
    monkeypatch.setattr(latency, "BUDGET_S", 0.0)
    monkeypatch.setattr(latency, "WARMUP_S", 0.0)
    columns = latency.percentiles(latency._time(replace(WORK, input_shape=(1, 3, 8, 8)))["ms"])
    assert columns["infer_latency_ms_p50"] > 0 and columns["infer_latency_ms_p90"] is None


# --- the largest batch


@pytest.mark.parametrize(("room", "largest"), [(1, 1), (5, 5), (13, 13), (100, 96), (127, 120)])
def test_the_search_backs_off_and_closes_in(room, largest):
    """Memory for `room` images; a forward takes 1 s and 0.01 s for each image."""
    calls = []

    def seconds(batch):
        calls.append(batch)
        return None if batch > room else 1 + 0.01 * batch

    tried, reason = largest_batch.search(seconds)
    assert tried[-1][0] == largest and "memory ran out at" in reason
    assert tried == sorted(tried) and all(rate == pytest.approx(size / (1 + 0.01 * size)) for size, rate in tried)
    assert len(calls) == len(set(calls))


def test_the_search_ends_at_a_long_forward_and_at_the_most_images():
    tried, reason = largest_batch.search(lambda batch: batch * 1.0)
    assert [size for size, _ in tried] == [1, 2, 4, 8] and reason == "a forward of 8 images took 8.0 s"
    tried, reason = largest_batch.search(lambda batch: 0.1)
    assert tried[-1][0] == largest_batch.MOST and "ends at 65536" in reason
    with pytest.raises(OutOfMemory, match="not even one"):
        largest_batch.search(lambda batch: None)


class Hungry(nn.Module):
    """Says that memory ran out from 6 images on, as torch's allocator does, and counts the tensors that live on."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        if len(x) > 5:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return x.flatten(1) * self.weight


def test_a_batch_without_memory_is_a_bound_and_another_error_is_an_error():
    found = largest_batch.find_max_batch(replace(WORK, build=Hungry))
    assert max(size for size, _ in found["tried"]) == 5 and found["max_batch_reason"] == "memory ran out at 6 images"
    with pytest.raises(RuntimeError, match="expected input"):
        largest_batch.find_max_batch(replace(WORK, build=lambda: nn.Conv2d(4, 3, 1)))


def test_a_kernel_that_refuses_a_batch_ends_the_search_and_loses_nothing():
    def seconds(batch):
        if batch > 16:
            raise RuntimeError("index out of the range of 32 bits\nmore")
        return 1.0

    tried, reason = largest_batch.search(seconds)
    assert tried[-1] == (16, 16.0) and reason == "32 images: index out of the range of 32 bits"


# --- counted


def test_activations_are_what_fvcore_counts_on_the_real_model():
    fvcore = pytest.importorskip("fvcore.nn")
    model = attention_zoo.create_model("small", attn="swin").eval()
    analysis = fvcore.ActivationCountAnalysis(model, torch.zeros(1, 3, 64, 64))
    assert count_activations(model, (1, 3, 64, 64)) == analysis.unsupported_ops_warnings(False).total() > 0


def test_activations_of_a_convolution_and_a_layer():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5))
    assert count_activations(model, (1, 3, 8, 8)) == 4 * 36 + 5


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        # maps of 16x16, 8x8, 4x4 and 2x2 tokens; the last stage is full attention
        ({"attn": "vanilla"}, {16: 256, 8: 64, 4: 16, 2: 4}),
        ({"attn": "swin", "settings": (("window", 2),)}, {16: 4, 8: 4, 4: 4, 2: 4}),
        ({"attn": "axial"}, {16: 32, 8: 16, 4: 8, 2: 4}),
        # 4x4 regions a side, of 4x4, 2x2 and 1x1 tokens
        ({"attn": "bra", "settings": (("topk", 4),)}, {16: 64, 8: 16, 4: 4, 2: 4}),
        ({"attn": "axial", "settings": (("layers", "sum"), ("head_dim", 5))}, {16: 32, 8: 16, 4: 8, 2: 4}),
    ],
    ids=lambda value: value.get("attn") if "attn" in value else None,
)
def test_keys_of_a_query_are_the_mean_over_tokens_and_blocks(settings, keys):
    cell = Cell(**settings)
    model = build_model(cell)
    depths = [len(blocks) for blocks in model.mixers()]
    tokens = [depth * side**2 for depth, side in zip(depths, keys, strict=True)]
    expected = sum(count * n for count, n in zip(tokens, keys.values(), strict=True)) / sum(tokens)
    assert keys_per_query(model, 64, 64) == pytest.approx(expected)


# --- rows


@pytest.mark.slow
def test_a_job_records_the_measures_by_name(tmp_path):
    store = open_store(tmp_path, create=True)
    cell = Cell(attn="swin", height_px=32, width_px=32, batch_size=2, threads=1)
    attempts = dict.fromkeys(("flops", "launches", "latency", "max_batch", "energy"), 1)
    run_job(Job(out=tmp_path, key=store.add_cell(cell), cell=cell, attempts=attempts, memory_limit_mib=200))
    (row,) = load(tmp_path).to_dict("records")
    assert row["status"] == "ok", row["error_message"]
    assert row["latency_samples"] >= 100 and row["infer_latency_ms_p50"] <= row["infer_latency_ms_p90"]
    assert row["max_batch"] >= 2 and row["max_infer_samples_per_sec"] > 0 and "images" in row["max_batch_reason"]
    assert row["kernel_launches"] > 50 and row["macts"] > 0 and row["keys_per_query"] > 0
    assert (row["energy_mj_per_image"] > 0) if row["energy_kind"] == "package" else "energy_uj" in row["energy_reason"]
