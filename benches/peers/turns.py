"""Turns of a workload beside other programs: the counterpart of benches/common/turns.rs."""
import json
import sys
import time


def serve(work, runs):
    """The first line of the answer is what runs here. Every line of the standard input is a turn of so many seconds; answers with the milliseconds of its runs."""
    work()
    work()
    print(json.dumps(runs), flush=True)
    for line in sys.stdin:
        seconds = float(line)
        work()
        start, times = time.perf_counter(), []
        while not times or time.perf_counter() - start < seconds:
            t = time.perf_counter()
            work()
            times.append(f"{(time.perf_counter() - t) * 1e3:.4f}")
        print(",".join(times), flush=True)


def pytorch(dtype):
    """What a process of PyTorch runs, as PyTorch says it; `dtype` is that of its tensors, or of autocast."""
    import torch

    names = {torch.float32: "f32", torch.bfloat16: "bf16"}
    return {"dtype": names[dtype], "threads": torch.get_num_threads(), "device": "cpu", "instructions": torch.backends.cpu.get_cpu_capability().lower()}
