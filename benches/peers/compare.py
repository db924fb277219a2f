#!/usr/bin/env python3
"""Workloads of this crate and of PyTorch in turns, on one machine in one run: writes the raw.csv of a record and prints ratios.

    cargo bench --bench table --bench step --no-run      # prints the paths of the bench binaries
    THREADS=2 python3 benches/peers/compare.py target/release/deps/table-… raw.csv softmax attention …
    THREADS=2 python3 benches/peers/compare.py target/release/deps/step-… raw.csv block gpt2 …

One process for each workload and implementation; they take turns of SECONDS (0.5; at least one run) for ROUNDS (7) rounds, in a
changing order. A line of the CSV is one run: workload, implementation, threads, round, seconds, peak resident memory of the process
in MiB. Each process says first what it runs (dtype, threads, device, instruction set), which has to be what was asked for, and is in
its rows. MODES=eager,compile (the default for steps) times torch.compile too; DTYPES=f32,bf16 times both in bf16 too (steps: in mixed
precision), PEERS=0 ours alone. BEFORE=path times another build of the same bench as "before". The workloads
fma256 and fma512 have no peer: they say what kind of machine it is. The file is appended to.

Each line that is printed has two ratios to the first implementation: of the medians, and the median over rounds of the ratio within
a round. The second is the one to quote where other load comes and goes, since both runs of a pair meet much the same.

A turn during which something else used more than 6 % of a processor is thrown away and repeated, up to TRIES (12) times; what stays
above is kept, counted and shown: such a median is no measurement.
"""
import csv
import json
import os
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
THREADS = os.environ.get("THREADS", "2")
ROUNDS = int(os.environ.get("ROUNDS", "7"))
SECONDS = os.environ.get("SECONDS", "0.5")
TRIES = int(os.environ.get("TRIES", "12"))
TICK = os.sysconf("SC_CLK_TCK")


def busy():
    """Processor seconds that the machine has spent so far, by anything or stolen by its host."""
    f = [int(x) for x in open("/proc/stat").readline().split()[1:9]]
    return (f[0] + f[1] + f[2] + f[5] + f[6] + f[7]) / TICK


class Child:
    """A process that waits for its turns."""

    def __init__(self, name, command, env, dtype):
        self.name, self.times, self.peak, self.disturbed = name, [], 0.0, 0
        env = {**os.environ, **env, "OMP_NUM_THREADS": THREADS, "RAYON_NUM_THREADS": THREADS, "THREADS": THREADS}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True)
        self.runs = json.loads(self.process.stdout.readline() or sys.exit(f"{name} ended before its first turn"))
        asked = {"dtype": dtype, "threads": int(THREADS), "device": "cpu"}
        if wrong := {k: self.runs.get(k) for k in asked if self.runs.get(k) != asked[k]}:
            sys.exit(f"{name} runs with {wrong}; asked for {asked}")

    def used(self):
        """Processor seconds of the process so far."""
        f = open(f"/proc/{self.process.pid}/stat").read().rsplit(")", 1)[1].split()
        return (int(f[11]) + int(f[12])) / TICK

    def turn(self):
        """A turn, and the share of a processor that others used in it."""
        start, all_, own = time.perf_counter(), busy(), self.used()
        self.process.stdin.write(f"{SECONDS}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended")
        others = (busy() - all_) - (self.used() - own)
        return [float(t) for t in line.split(",")], others / (time.perf_counter() - start)

    def clean_turn(self):
        best = None
        for _ in range(TRIES):
            times, others = self.turn()
            if best is None or others < best[1]:
                best = times, others
            if others < 0.06:
                break
        self.disturbed += best[1] >= 0.06
        self.times.append(best[0])

    def end(self):
        self.process.stdin.close()
        _, _, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = 0
        self.peak = usage.ru_maxrss / 1024


def children(binary, workload, step):
    twin = "torch_step.py" if step else "torch_table.py"
    made = []
    for dtype in os.environ.get("DTYPES", "f32").split(","):
        name = "cotangent" if dtype == "f32" else f"cotangent {dtype}"
        ours = {"COTANGENT_TURNS": workload, "COTANGENT_BENCH_DTYPES": dtype}
        made.append(Child(name, [binary], ours, dtype))
        if os.environ.get("BEFORE"):
            made.append(Child(name.replace("cotangent", "before"), [os.environ["BEFORE"]], ours, dtype))
        if os.environ.get("PEERS") != "0" and not workload.startswith("fma"):
            for mode in os.environ.get("MODES", "eager,compile" if step else "eager").split(","):
                name = "torch " + mode + ("" if dtype == "f32" else f" {dtype}")
                made.append(Child(name, [sys.executable, f"{HERE}/{twin}", workload], {"MODE": mode, "DTYPE": dtype}, dtype))
    return made


def main():
    binary, path, *workloads = sys.argv[1:]
    step = "step" in os.path.basename(binary)
    new = not os.path.exists(path)
    with open(path, "a", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        if new:
            out.writerow(["workload", "implementation", "dtype", "instructions", "threads", "sample", "seconds", "peak_rss_mib"])
        for workload in workloads:
            all_ = children(binary, workload, step)
            for c in all_:
                c.turn()  # Everything is started and warm before the first turn that counts.
            for r in range(ROUNDS):
                k = r % len(all_)
                for c in all_[k:] + all_[:k]:
                    c.clean_turn()
            for c in all_:
                c.end()
            first = statistics.median(statistics.median(t) for t in all_[0].times)
            for c in all_:
                for r, times in enumerate(c.times):
                    for t in times:
                        out.writerow([workload, c.name, c.runs["dtype"], c.runs["instructions"], c.runs["threads"], r, f"{t * 1e-3:.7f}", f"{c.peak:.0f}"])
                ms = statistics.median(statistics.median(t) for t in c.times)
                paired = statistics.median(statistics.median(t) / statistics.median(f) for t, f in zip(c.times, all_[0].times))
                ratios = f"{ms / first:6.2f} paired {paired:6.3f}"
                print(f"{workload:22} {c.name:18} {THREADS} threads {ms:10.3f} ms {c.peak:6.0f} MiB {ratios}  disturbed {c.disturbed}/{ROUNDS}", flush=True)
            file.flush()


main()
