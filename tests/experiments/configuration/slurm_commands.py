"""
Stand-ins for Slurm's commands, as far as submitit uses them: one script under five names.

``sbatch`` runs a job's tasks at once, each in a new session with the variables that Slurm
would set; ``srun`` runs its command; ``sacct`` looks whether the processes are alive.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(sys.argv[0]).resolve().parent
JOB = "7"


def sbatch(arguments):
    script = Path(arguments[-1]).read_text()
    (HERE / "submitted.sh").write_text(script)
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", script, re.MULTILINE))
    last = int(re.match(r"0-(\d+)", options["array"])[1])
    pids = []
    for task in range(last + 1):
        variables = {
            "SLURM_JOB_ID": f"{int(JOB) + task}",
            "SLURM_ARRAY_JOB_ID": JOB,
            "SLURM_ARRAY_TASK_ID": str(task),
            "SLURM_NTASKS": "1",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_NODEID": "0",
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
            "SLURM_JOB_NODELIST": "localhost",
        }
        job = subprocess.Popen(
            ["bash", "-c", script],
            env={**os.environ, **variables},
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        pids.append(job.pid)
    (HERE / "pids").write_text(" ".join(map(str, pids)))
    print(f"Submitted batch job {JOB}")


def srun(arguments):
    files = {}
    while arguments and arguments[0].startswith("--"):
        option = arguments.pop(0)
        if option in ("--output", "--error"):
            path = arguments.pop(0)
            for code, name in (("%A", "SLURM_ARRAY_JOB_ID"), ("%a", "SLURM_ARRAY_TASK_ID")):
                path = path.replace(code, os.environ[name])
            log = Path(path.replace("%t", "0"))
            log.parent.mkdir(parents=True, exist_ok=True)  # Slurm would start it later
            files[option] = log.open("a")
    done = subprocess.run(arguments, stdout=files["--output"], stderr=files["--error"], check=False)
    raise SystemExit(done.returncode)


def sacct(_):
    print("JobID|State|NodeList")
    for task, pid in enumerate((HERE / "pids").read_text().split()):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().split()[2]
        except FileNotFoundError:
            state = "Z"
        print(f"{JOB}_{task}|{'COMPLETED' if state == 'Z' else 'RUNNING'}|localhost")


if __name__ == "__main__":
    commands = {"sbatch": sbatch, "srun": srun, "sacct": sacct}
    name = Path(sys.argv[0]).name
    if name not in commands:
        raise SystemExit(f"{name}: not a part of this cluster")
    commands[name](sys.argv[1:])
