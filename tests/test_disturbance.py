"""What disturbs a measurement of speed: it is told, widens intervals, and has it repeated once."""

from dataclasses import replace

import pytest
from speed_clock import QUIET, SEEN, Timed, clock, here, work

from runners.measure import disturbance, speed
from runners.measure.speed import measure_speed

__all__ = ["clock", "here"]  # fixtures

# --- disturbance


BUSY = {"others": 0.5, "switches": 90.0, "drift": 1.0}


def test_a_disturbed_measurement_says_so_and_by_what(clock, here):
    SEEN.extend([QUIET, BUSY, QUIET, QUIET | {"drift": 1.6}])
    columns, _ = measure_speed(work(Timed(clock)))
    assert columns["disturbed"] and not columns["measured_again"]
    second, fourth = columns["disturbance"].split("; ")
    assert second.startswith("process 2:") and "50%" in second and "90" in second
    assert fourth.startswith("process 4:") and "1.60" in fourth


def test_the_interval_of_a_disturbed_row_allows_for_what_others_took(clock, here):
    vanilla = Timed(clock, forward_s=0.04, backward_s=0.08)
    SEEN.extend([QUIET, {**QUIET, "others": 0.2}, {**QUIET, "others": 0.5}, QUIET])
    columns, _ = measure_speed(work(Timed(clock), vanilla))
    for ratio in ("vs_vanilla", "train_vs_vanilla"):
        found = [columns[ratio], columns[f"{ratio}_low"], columns[f"{ratio}_high"]]
        assert found == [pytest.approx(4), pytest.approx(2), pytest.approx(8)]
    # 5 % is what an idle machine shows
    SEEN.extend([{**QUIET, "others": 0.05}] * 4)
    columns, _ = measure_speed(work(Timed(clock), vanilla))
    assert columns["vs_vanilla_low"] == pytest.approx(4) and not columns["disturbed"]


@pytest.mark.parametrize(("again", "disturbed"), [([], False), ([BUSY] * 4, True), ([BUSY], True)])
def test_it_is_repeated_once_and_the_quieter_one_becomes_the_row(clock, here, again, disturbed):
    SEEN.extend([BUSY, BUSY, QUIET, QUIET, *again])
    columns, samples = measure_speed(work(Timed(clock)), patience_s=1000)
    assert columns["measured_again"] and columns["disturbed"] == disturbed
    assert len(here) == 2 * speed.PROCESSES
    assert len(samples["earlier_infer_ms"]) > 0


def test_what_does_not_fit_into_the_patience_is_not_repeated(clock, here, monkeypatch):
    ticks = iter([0.0, 31.0])
    monkeypatch.setattr(speed.time, "monotonic", lambda: next(ticks))
    SEEN.extend([BUSY] * 4)
    columns, samples = measure_speed(work(Timed(clock)), patience_s=30)
    assert (columns["disturbed"], columns["measured_again"]) == (True, False)
    assert not any(name.startswith("earlier") for name in samples)


def test_a_quiet_measurement_is_not_marked(clock, here):
    columns, _ = measure_speed(work(Timed(clock)), patience_s=1000)
    assert (columns["disturbed"], columns["disturbance"], columns["measured_again"]) == (False, None, False)


def readings(wall_s=0.0, own_s=0.0, busy_s=0.0, switches=0, throttled=0, clock_mhz=2000.0):
    return disturbance.Readings(wall_s, own_s, busy_s, switches, throttled, clock_mhz)


@pytest.mark.parametrize(
    ("after", "word"),
    [
        (readings(10, 20, 20, 10), None),
        (readings(10, 12, 20, 10), "40%"),
        (readings(10, 20, 20, 2000), "100"),
        (readings(10, 20, 20, 0, throttled=2), "2 times"),
        (readings(10, 20, 20, 0, clock_mhz=1500.0), "75%"),
    ],
)
def test_counters_tell_what_disturbed(after, word, monkeypatch):
    monkeypatch.setattr(disturbance, "usable_processors", lambda: [0, 1])
    found = disturbance.reasons(disturbance.summary([(readings(), after)], threads=2))
    assert len(found) == (word is not None) and (word is None or word in found[0])


def test_counters_of_spans_add_up(monkeypatch):
    monkeypatch.setattr(disturbance, "usable_processors", lambda: [0, 1])
    span = readings(), readings(1, 1, 1.4, 30)
    found = disturbance.summary([span, span], threads=2)
    assert found["others"] == pytest.approx(0.2) and found["switches"] == pytest.approx(15)


@pytest.mark.parametrize(
    ("values", "drift"), [([1.0] * 11, None), ([1, 1, 9, 1, 1, 1, 1, 1, 2, 2, 2, 2], 2.0), ([3.0] * 12, 1.0)]
)
def test_drift_compares_the_last_third_with_the_first(values, drift):
    assert disturbance.drift(values) == drift


def test_counters_that_a_system_lacks_are_left_out():
    none = disturbance.Readings(0, 0, None, None, None, None)
    found = disturbance.summary([(none, replace(none, wall_s=1.0))], threads=1)
    assert "others" not in found and "clock" not in found and not disturbance.reasons(found)
