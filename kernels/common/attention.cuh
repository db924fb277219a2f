// What all attention kernels know of their operands.
#pragma once
#include "common/view.cuh"

// A stack of matrices: where each head's starts, and the strides within.
struct Heads {
    View lead;
    i64 row, col;
};

DEVICE i64 least(i64 a, i64 b) { return a < b ? a : b; }
// A difference of 64-bit numbers of which only the part between the bounds matters.
DEVICE i32 within(i64 x, i32 low, i32 high) { return x < low ? low : x > high ? high : i32(x); }
