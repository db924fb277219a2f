// Notes of the attention kernels with matrix units for those without: which of every 16 rows of a result are not finite.
#pragma once
#include "common/types.cuh"

// Whether one of the rows r0 to r0 + ROWS - 1 of a matrix of `rows` rows is noted.
template <int ROWS> DEVICE bool noted(const u8* notes, i64 head, i64 rows, i64 r0) {
    i64 groups = (rows + 15) / 16, first = r0 / 16;
    bool any = false;
#pragma unroll
    for (int i = 0; i < ROWS / 16; i++) any = any || (first + i < groups && notes[head * groups + first + i]);
    return any;
}
