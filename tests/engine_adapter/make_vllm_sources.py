"""
Note what the classes that the adapter touches look like in vLLM wheels.

    pip download --no-deps -d wheels vllm==0.33.0
    python tests/engine_adapter/make_vllm_sources.py wheels/*.whl

Adds them to vllm_sources.json beside this file, or writes them anew; other versions there stay as
they were, so that after a change of what the adapter touches all wheels are needed. Wheels are only
read as archives, so GPU wheels serve on a machine without one.
"""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

from engine_adapter.internals import REQUIRED
from engine_adapter.probe import classes_in

OUTPUT = Path(__file__).with_name("vllm_sources.json")


def main(wheels: list[str]) -> None:
    """Read wheels, and note the names in all classes that are required."""
    versions = json.loads(OUTPUT.read_text(encoding="utf-8")) if OUTPUT.exists() else {}
    for wheel in sorted(wheels):
        path = Path(wheel)
        modules: dict[str, dict[str, object]] = {}
        with zipfile.ZipFile(path) as archive:
            for need in REQUIRED:
                try:
                    source = archive.read(need.module.replace(".", "/") + ".py").decode()
                except KeyError:
                    continue
                found = classes_in(source)
                modules.setdefault(need.module, {})
                if need.cls in found:
                    modules[need.module][need.cls] = dict(sorted(found[need.cls].items()))
        name, version, *_ = path.name.split("-")
        versions[version] = {"wheel": path.name, "distribution": name, "modules": modules}
    versions = dict(sorted(versions.items(), key=lambda v: [int(p) for p in v[0].split(".")]))
    OUTPUT.write_text(json.dumps(versions, separators=(",", ":")).replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
