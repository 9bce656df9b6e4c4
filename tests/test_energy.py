"""Energy: power times time, counters of processors and devices, and what a driver tells, all by stand-ins."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from small_work import CPU, WORK

from runners.machine import accelerator
from runners.machine.accelerator import Meter
from runners.machine.hardware import hardware
from runners.measure import energy, rounds

# --- energy


class Fake:
    """A counter of energy and a clock: a run takes `run_s`, and the device draws 10 W idle and 30 W at work."""

    def __init__(self, run_s):
        self.seconds = self.joules = 0.0
        self.run_s = run_s

    def run(self):
        self.seconds += self.run_s
        self.joules += 30 * self.run_s
        return [self.run_s * 1e3]

    def sleep(self, seconds):
        self.seconds += seconds
        self.joules += 10 * seconds


def test_energy_is_power_times_time_and_idle_stands_beside_it(monkeypatch):
    fake = Fake(0.5)
    seam = replace(hardware(CPU), meter=lambda: Meter(lambda: fake.joules, "board"))  # stands for NVML's counter
    monkeypatch.setattr(energy, "hardware", lambda device: seam)
    monkeypatch.setattr(energy, "time", SimpleNamespace(perf_counter=lambda: fake.seconds, sleep=fake.sleep))
    monkeypatch.setattr(rounds.Contender, "infer", lambda self: fake.run())
    monkeypatch.setattr(rounds.Contender, "train", lambda self: fake.run())
    found = energy.read_energy(WORK)
    # 15 J for each run, of a batch of 4
    assert found["energy_mj_per_image"] == pytest.approx(15e3 / 4)
    assert found["train_energy_j_per_step"] == pytest.approx(15)
    assert found["idle_power_w"] == pytest.approx(10)
    assert (found["energy_kind"], found["energy_reason"]) == ("board", None)
    # idle, inference and training for at least 5 s each, and warm-up
    assert 15 <= fake.seconds <= 20


def test_without_a_counter_energy_is_empty_with_a_reason(monkeypatch, tmp_path):
    monkeypatch.setattr(accelerator, "POWERCAP", tmp_path)
    found = energy.read_energy(WORK)
    assert found["energy_mj_per_image"] is found["train_energy_j_per_step"] is found["energy_kind"] is None
    assert "energy_uj" in found["energy_reason"]


def test_packages_of_a_processor_are_added_and_their_counters_begin_anew(monkeypatch, tmp_path):
    for index, start in enumerate((900_000, 10)):
        folder = tmp_path / f"intel-rapl:{index}"
        folder.mkdir()
        (folder / "energy_uj").write_text(f"{start}\n")
        (folder / "max_energy_range_uj").write_text("999999\n")
    monkeypatch.setattr(accelerator, "POWERCAP", tmp_path)
    meter = accelerator.meter(CPU)
    assert meter.kind == "package" and meter.joules() == 0
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("100000\n")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("500010\n")
    assert meter.joules() == pytest.approx(0.2 + 0.5)


# --- the driver of an NVIDIA device


class NVML:
    """Stands for pynvml and an H100 that two other processes use; it does not tell its memory clock."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self):
        self.mj = 1000

    def nvmlDeviceGetHandleByUUID(self, uuid):
        assert uuid == "GPU-1234"
        return "handle"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        return self.mj

    def nvmlDeviceGetEnforcedPowerLimit(self, handle):
        return 700_000

    def nvmlDeviceGetClockInfo(self, handle, kind):
        if kind == self.NVML_CLOCK_MEM:
            raise self.NVMLError("not supported")
        return 1755

    def nvmlDeviceGetMaxClockInfo(self, handle, kind):
        return 1980

    def nvmlDeviceGetTemperature(self, handle, kind):
        return 41

    def nvmlDeviceGetMigMode(self, handle):
        return [0, 0]

    def nvmlSystemGetDriverVersion(self):
        return "570.1"

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return [SimpleNamespace(pid=pid) for pid in (1, 2, accelerator.os.getpid())]


def test_the_driver_tells_limits_clocks_heat_and_neighbours(monkeypatch):
    nvml = NVML()
    monkeypatch.setattr(accelerator, "_nvml", lambda: nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))
    device = torch.device("cuda")
    assert accelerator.state(device) == {
        "power_limit_w": 700.0,
        "clock_mhz": 1755,
        "max_clock_mhz": 1980,
        "memory_clock_mhz": None,
        "temperature_c": 41,
        "mig": False,
        "driver": "570.1",
        "other_processes": 2,
    }
    meter = accelerator.meter(device)
    before = meter.joules()
    nvml.mj += 2500
    assert meter.joules() - before == pytest.approx(2.5) and meter.kind == "board"
    assert accelerator.state(CPU) == {}


def test_without_the_drivers_library_nothing_is_told(monkeypatch):
    monkeypatch.setattr(accelerator, "_nvml", lambda: None)
    device = torch.device("cuda")
    assert accelerator.state(device) == {} and accelerator.meter(device) is None
    assert "nvidia-ml-py" in accelerator.why_no_meter(device)
