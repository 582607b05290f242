"""Steps that record facts about this machine and its CUDA runtime."""

import json
import platform
import shutil
import subprocess
from dataclasses import dataclass, replace

import torch

from scripts.check_gpu.report import Outcome, verdict
from scripts.check_gpu.running import Check, Program


@dataclass(frozen=True)
class Machine:
    """A step that records facts about this machine: GPUs, driver, versions and compilers."""

    name: str = "machine"

    def act(self, check: Check) -> Outcome:
        """Collect the facts from torch and, if it is installed, nvidia-smi."""
        cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        asked = "--query-gpu=driver_version,compute_mode,mig.mode.current"
        driver = _said("nvidia-smi", asked, "--format=csv,noheader")
        facts = {
            "cards": cards,
            "driver": driver.split("\n")[0],
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "python": platform.python_version(),
            "compilers": [name for name in ("cc", "gcc", "g++", "nvcc") if shutil.which(name)],
            "shared_memory_bytes": shutil.disk_usage("/dev/shm").total,
        }
        text = f"{', '.join(cards) or platform.processor() or platform.machine()}; torch "
        text += f"{facts['torch']}, CUDA {facts['cuda']}, driver {facts['driver'] or 'none'}"
        return verdict(bool(cards) or not check.cuda, text=text, **facts)


@dataclass(frozen=True)
class Facts:
    """A step that measures facts about the CUDA runtime on which the program's design relies."""

    name: str = "facts"

    def act(self, check: Check) -> Outcome:
        """Run `probe.py`, and write its facts to `probe.json`."""
        probe = ["-m", "scripts.check_gpu.probe", "cuda" if check.cuda else "cpu"]
        outcome = Program(self.name, probe, 100.0).act(check)
        lines = [line for line in outcome.output.splitlines() if line.startswith('{"fact"')]
        facts = [json.loads(line) for line in lines]
        (check.report.folder / "probe.json").write_text(json.dumps(facts, indent=1) + "\n")
        wrong = [fact for fact in facts if fact["fact"] == "failed" or fact.get("right") is False]
        if outcome.state == "skipped":
            return replace(outcome, facts={**outcome.facts, "facts": facts})
        right = outcome.state == "ok" and bool(facts) and not wrong
        return verdict(right, outcome.output, facts=facts, reason=wrong)


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
