"""What the driver of an NVIDIA device, or Linux of a processor, says of its energy, limits, clocks and neighbours.

Read through `nvidia-ml-py` (`pip install attention-zoo[gpu]`) and from /sys; what is not there is None.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Meter:
    """A counter of energy: `joules` since some moment, and whether it is of the whole `board` or of the `package`."""

    joules: Callable[[], float]
    kind: str


def state(device: torch.device) -> dict[str, Any]:
    """Columns that tell how a CUDA device stands: power limit, clocks, temperature, partition, driver, neighbours.

    `other_processes` counts those that compute on it besides this one and its parent. Empty on other devices.
    """
    found = _handle(device)
    if found is None:
        return {}
    nvml, handle = found
    readings: dict[str, Callable[[], Any]] = {
        "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
        "clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "max_clock_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
        "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        "mig": lambda: bool(nvml.nvmlDeviceGetMigMode(handle)[0]),
        "driver": lambda: str(nvml.nvmlSystemGetDriverVersion()),
        "other_processes": lambda: len(_processes(nvml, handle) - {os.getpid(), os.getppid()}),
    }
    return {name: _or_none(nvml, reading) for name, reading in readings.items()}


def meter(device: torch.device) -> Meter | None:
    """The counter of a device's energy: NVML's on CUDA (Volta or newer), RAPL's of a processor where readable."""
    if device.type == "cuda":
        found = _handle(device)
        if found is None:
            return None
        nvml, handle = found
        read = partial(nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
        if _or_none(nvml, read) is None:
            return None
        return Meter(lambda: read() / 1e3, "board")
    return _rapl() if device.type == "cpu" else None


def why_no_meter(device: torch.device) -> str:
    """Why `meter` found none, in words."""
    if device.type == "cuda":
        return "no energy counter: nvidia-ml-py is not installed, or the device is older than Volta or a MIG partition"
    if device.type == "cpu":
        return f"no energy counter: {POWERCAP}/intel-rapl:*/energy_uj is not there or not readable"
    return f"no energy counter is known of {device.type}"


@cache
def _nvml() -> Any:
    """The started library, None where it or its driver is missing."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def _handle(device: torch.device) -> tuple[Any, Any] | None:
    nvml = _nvml() if device.type == "cuda" else None
    if nvml is None:
        return None
    # indices of torch count what CUDA_VISIBLE_DEVICES shows, those of the driver all; the name is the same in both
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    handle = _or_none(nvml, partial(nvml.nvmlDeviceGetHandleByUUID, uuid))
    return None if handle is None else (nvml, handle)


def _or_none(nvml: Any, read: Callable[[], Any]) -> Any:
    """What a device tells; not every one tells everything."""
    with suppress(nvml.NVMLError):
        return read()
    return None


def _processes(nvml: Any, handle: Any) -> set[int]:
    return {process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)}


class _Package:
    """Counter of one processor package in microjoules, which begins anew at its range."""

    def __init__(self, folder: Path) -> None:
        self._file, self._range = folder / "energy_uj", int((folder / "max_energy_range_uj").read_text())
        self._last, self._sum = int(self._file.read_text()), 0

    def joules(self) -> float:
        now = int(self._file.read_text())
        self._sum += (now - self._last) % (self._range + 1)
        self._last = now
        return self._sum / 1e6


def _rapl() -> Meter | None:
    """All packages of the machine together; the file is root's alone on most systems."""
    try:
        packages = [_Package(folder) for folder in sorted(POWERCAP.glob("intel-rapl:[0-9]")) if folder.is_dir()]
    except (OSError, ValueError):
        return None
    return Meter(lambda: sum(package.joules() for package in packages), "package") if packages else None
