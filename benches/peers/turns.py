"""Turns of a workload beside other programs: the counterpart of benches/common/turns.rs."""
import sys
import time


def serve(work):
    """Every line of the standard input is a turn of so many seconds; answers with the milliseconds of its runs."""
    work()
    work()
    for line in sys.stdin:
        seconds = float(line)
        work()
        start, times = time.perf_counter(), []
        while not times or time.perf_counter() - start < seconds:
            t = time.perf_counter()
            work()
            times.append(f"{(time.perf_counter() - t) * 1e3:.4f}")
        print(",".join(times), flush=True)
