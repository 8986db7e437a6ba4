"""Energy that work takes: the processor's own counters (RAPL), the GPU's (NVML), or none."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Counts joules from the moment it is made.

    Processor packages are read where the kernel lets this user (RAPL; often root alone), GPUs
    where pynvml is installed. What else the machine draws (memory, disks, fans) is in neither.

    Args:
        powercap: Folder of the kernel's power domains.
        gpus: Handles of NVML; found by default.
    """

    def __init__(self, powercap: Path = POWERCAP, gpus: list[Any] | None = None):
        self._domains = _readable_packages(powercap)
        self._nvml, found = _nvml()
        self._gpus = found if gpus is None else gpus
        self._start: list[tuple[int, int]] = []
        self.restart()

    def restart(self) -> None:
        """Counts from now on."""
        self._start = self._read()

    @property
    def source(self) -> str:
        """Whose energy is counted; `not measured` where nothing tells."""
        parts = ["processor (RAPL)"] * bool(self._domains) + ["GPU (NVML)"] * bool(self._gpus)
        return " and ".join(parts) or "not measured"

    def joules(self) -> float | None:
        """Energy since the start; None where nothing tells. Counters may have turned over once."""
        if not self._domains and not self._gpus:
            return None
        total = 0.0
        for (before, size), (now, _) in zip(self._start, self._read(), strict=True):
            total += now - before if now >= before else now + size - before
        return total / 1e6

    def _read(self) -> list[tuple[int, int]]:
        """Of each counter: microjoules, and where it turns over."""
        found = [
            (_number(domain / "energy_uj"), _number(domain / "max_energy_range_uj"))
            for domain in self._domains
        ]
        for gpu in self._gpus:
            found.append((1000 * self._nvml.nvmlDeviceGetTotalEnergyConsumption(gpu), 0))
        return found


def _readable_packages(powercap: Path) -> list[Path]:
    """Whole packages, not the cores and memory inside them, which are counted in those."""
    found = []
    for domain in sorted(powercap.glob("*-rapl:*")):
        if domain.name.count(":") == 1:
            try:
                _number(domain / "energy_uj")
                _number(domain / "max_energy_range_uj")
            except (OSError, ValueError):
                continue  # most kernels show it to root alone: then it is not measured
            found.append(domain)
    return found


def _number(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))


def _nvml() -> tuple[Any, list[Any]]:
    if importlib.util.find_spec("pynvml") is None:
        return None, []
    import pynvml

    try:
        pynvml.nvmlInit()
        handles = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            handles.append(handle)
    except pynvml.NVMLError:
        return pynvml, []  # no driver, or a card that does not count
    return pynvml, handles
