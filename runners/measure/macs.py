"""Arithmetic and parameters of one image, in evaluation mode.

Protocol 1. MACs (multiply-accumulates of matrix products and convolutions, biases left out) are counted three
times, and the three must agree to the last one: the closed form `model.macs`, fvcore's trace (the recorded
counter, with handles of our own for what it drops or miscounts) and torch's FlopCounterMode (1 MAC = 2 FLOPs).
A model of timm has no closed form; the two counters must agree.
Both counters run a copy on the `meta` device, which needs no memory; a model that cannot run there, on the CPU.
Normalisation, pooling and sampling are estimates by fvcore's rules: 2 per element for an inference batch norm, 5
for another affine norm (4 without affine), 1 per input element in pooling and means, 4 per output of bilinear sampling.
Activations are what convolutions and matrix products write, by fvcore's rules, as timm counts them; the scores inside
of a fused attention are no output of an operator, and are left out.
Every other operator that is neither element-wise nor a mere move of data is listed by name, uncounted.
"""

from typing import Any, cast

from torch import nn

from attention_zoo.counting import Counts, count_activations, count_macs, differences
from attention_zoo.hosts.pyramid import Pyramid


class CountMismatch(RuntimeError):
    """Closed form, fvcore and torch count different numbers of MACs."""


def count(model: nn.Module, height_px: int, width_px: int, executed: nn.Module | None = None) -> dict[str, Any]:
    """Cost columns of one (1, 3, height_px, width_px) image; `model`, its mode and the RNG stay as they are.

    Args:
        model: the algorithm's own form, with `macs(height_px, width_px)` and `attention_macs(height_px, width_px)`; of
            a model without them the two counters alone decide.
        height_px: image height.
        width_px: image width.
        executed: the same model in the implementation that runs, where that is another; it has no closed form.

    Raises:
        CountMismatch: the closed form or the counters differ; names the numbers and the operators.
    """
    subject = cast(Any, model) if hasattr(model, "macs") else None
    counts = count_macs(model, (1, 3, height_px, width_px))
    total = counts.totals[0] if subject is None else int(subject.macs(height_px, width_px).total)
    image = f"one {height_px}x{width_px} image"
    if {*counts.totals} != {total}:
        reason = _mixers(model, counts, height_px, width_px) or _modules(counts)
        closed = f"closed form {total}, " if subject is not None else ""
        raise CountMismatch(f"MACs of {image} differ: {closed}{_totals(counts)}; {reason}")
    ran_model = model if executed is None else executed
    ran = counts if executed is None else count_macs(executed, (1, 3, height_px, width_px))
    if len({*ran.totals}) > 1:
        raise CountMismatch(f"executed MACs of {image} differ: {_totals(ran)}; {_modules(ran)}")
    return {
        "gmacs": total / 1e9,
        "executed_gmacs": ran.totals[0] / 1e9,
        "other_gops": counts.others / 1e9,
        "gflops": 2 * total / 1e9,
        "attention_gmacs": None if subject is None else subject.attention_macs(height_px, width_px) / 1e9,
        "macts": count_activations(ran_model, (1, 3, height_px, width_px)) / 1e6,
        "params_m": sum(p.numel() for p in model.parameters()) / 1e6,
        "uncounted_ops": ";".join(f"{kind}:{n}" for kind, n in sorted(counts.unknown[""].items())),
    }


def _totals(counts: Counts) -> str:
    return "fvcore {}, torch {}".format(*counts.totals)


def _modules(counts: Counts) -> str:
    where = differences(counts)
    if not where:
        return "the counters agree in every module, so macs() does not describe the model"
    return f"the counters differ in {where}"


def _mixers(model: nn.Module, counts: Counts, height_px: int, width_px: int) -> str:
    """Name the mixers of a pyramid whose closed form is not what both counters find, a kind of each stage once."""
    if not isinstance(model, Pyramid):
        return ""
    names = {module: name for name, module in model.named_modules()}
    wrong: dict[str, None] = {}
    for stage, (mixers, (height, width)) in enumerate(
        zip(model.mixers(), model.layout.maps(height_px, width_px), strict=True)
    ):
        for mixer in mixers:
            closed, name = mixer.macs(height, width).total, names[mixer]
            by_fvcore, by_torch = counts.fvcore[name].total(), counts.torch[name].total()
            if {by_fvcore, by_torch} != {closed}:
                wrong[
                    f"{type(mixer).__name__} at stage {stage + 1}, on a {height}x{width} map: closed form {closed}, "
                    f"fvcore {by_fvcore}, torch {by_torch}"
                ] = None
    return "; ".join(wrong)
