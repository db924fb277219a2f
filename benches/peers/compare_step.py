#!/usr/bin/env python3
"""Training steps of this crate and of PyTorch in turns, on one machine in one run: writes the raw.csv of a record.

    cargo bench --bench step --no-run            # prints the path of the bench binary
    THREADS=2 python3 benches/peers/compare_step.py target/release/deps/step-… raw.csv [rounds]

Each round runs one process per workload and implementation, in a changing order. A line of the CSV is one process:
workload, implementation, threads, round, seconds of a step (median within the process), peak resident memory in MiB.
"""
import csv
import glob
import json
import os
import re
import subprocess
import sys
import tempfile

THREADS = os.environ.get("THREADS", "2")
HERE = os.path.dirname(os.path.abspath(__file__))
WORKLOADS = ["nanogpt", "gptbaby"]


def run(command, env):
    """Output and peak resident memory in MiB of a process."""
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **env})
        _, status, usage = os.wait4(process.pid, 0)
        out.seek(0)
        text = out.read()
    if status != 0:
        sys.exit(f"{' '.join(command)} failed:\n{text}")
    return text, usage.ru_maxrss / 1024


def ours(binary, workload):
    with tempfile.TemporaryDirectory() as folder:
        command = [binary, "--bench", f"^{workload}/step$", "--measurement-time", "8", "--noplot"]
        _, peak = run(command, {"RAYON_NUM_THREADS": THREADS, "CRITERION_HOME": folder})
        (path,) = glob.glob(f"{folder}/{workload}/step/new/sample.json")
        sample = json.load(open(path))
    times = sorted(t / n * 1e-9 for t, n in zip(sample["times"], sample["iters"]))
    return times[len(times) // 2], peak


def torch(mode):
    def measure(_, workload):
        text, _ = run([sys.executable, f"{HERE}/torch_step.py", workload], {"THREADS": THREADS, "MODE": mode})
        # The line that torch_step.py prints; compilers may print others.
        found = re.search(rf"^{workload},torch-{mode},\d+,([\d.]+),([\d.]+)$", text, re.M)
        if not found:
            sys.exit(f"no result of {workload} in:\n{text}")
        return float(found[1]) * 1e-3, float(found[2])

    return measure


def main():
    binary, path = sys.argv[1:3]
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 3
    kinds = [("cotangent", ours), ("torch eager", torch("eager")), ("torch.compile", torch("compile"))]
    with open(path, "w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["workload", "implementation", "threads", "sample", "seconds", "peak_rss_mib"])
        for r in range(rounds):
            for workload in WORKLOADS:
                for name, measure in kinds[r % 3:] + kinds[: r % 3]:
                    seconds, peak = measure(binary, workload)
                    out.writerow([workload, name, THREADS, r, f"{seconds:.6f}", f"{peak:.0f}"])
                    file.flush()
                    print(f"{workload:8} {name:14} {seconds * 1e3:8.2f} ms {peak:6.0f} MiB", flush=True)


main()
