// Notes of the attention kernels with matrix units for those without: which of every 16 rows of a result are not finite. Before
// them lies how many there are.
#pragma once
#include "common/types.cuh"

// Bytes before the first note: a u32, and room so that it is aligned.
constexpr int NOTES = 16;

// Whether there is nothing to compute: most of the time, and then no block looks at its tiles.
DEVICE bool none_noted(const u8* notes) { return notes && *reinterpret_cast<const u32*>(notes) == 0; }

// Whether one of the rows r0 to r0 + ROWS - 1 of a matrix of `rows` rows is noted.
template <int ROWS> DEVICE bool noted(const u8* notes, i64 head, i64 rows, i64 r0) {
    i64 groups = (rows + 15) / 16, first = r0 / 16;
    bool any = false;
#pragma unroll
    for (int i = 0; i < ROWS / 16; i++) any = any || (first + i < groups && notes[NOTES + head * groups + first + i]);
    return any;
}
