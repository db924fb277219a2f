// How a window slides over the positions of an input: convolutions and pooling.
#pragma once
#include "common/view.cuh"

// As in src/backend/cuda/abi/sliding.rs: channels are counted per group; three spatial axes, of which the first may be trivial. Position p of
// the output and element k of the window meet at p stride + k dilation - low of the input.
struct Sliding {
    i64 images, groups, inputs, outputs;
    i64 input[3], kernel[3], output[3], stride[3], dilation[3], low[3];
};
static_assert(sizeof(Sliding) == 176, "as in src/backend/cuda/abi");
