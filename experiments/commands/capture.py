"""``andes-opt capture``: an even sample of what a simulation solves, as .npz files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig

from experiments.runs.records import recorded_run
from experiments.runs.resume import resumable
from experiments.solver_comparison import instances

if TYPE_CHECKING:
    from omegaconf import DictConfig


@resumable
def run(config: DictConfig) -> dict[str, float]:
    """Simulate, write the instances and a summary, and return the summary."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    with recorded_run(folder) as record:
        sample = instances.captured(config, config.capture)
        target = folder if config.corpus is None else Path(config.corpus).expanduser()
        # Those of an earlier capture must not be taken for this one's.
        for old in target.glob(f"{instances.CAPTURED}*.npz"):
            old.unlink()
        paths = instances.save(sample, target)
        sizes = [named.instance.num_requests for named in sample]
        summary = {
            "instances": len(sample),
            "requests_mean": sum(sizes) / len(sizes),
            "requests_max": max(sizes),
            "bytes": sum(path.stat().st_size for path in paths),
        }
        record.finish(None, summary)
    print(f"{len(sample)} instances of up to {max(sizes)} requests in {target}")
    return summary
