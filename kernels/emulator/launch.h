// From the parameters of cuLaunchKernel to calls of a C++ function.
#pragma once
#include "scheduler.h"
#include <tuple>
#include <utility>

namespace cuemu {

// Runs all blocks; 0, or with a text in cuemu_last_error(): 1 when it was refused, 2 when a kernel failed.
int run(const Launch& launch);

template <class... A> struct Call {
    void (*kernel)(A...);
    void** params; // one pointer for each argument
    template <size_t... I> void make(std::index_sequence<I...>) { kernel(*static_cast<std::remove_reference_t<A>*>(params[I])...); }
    static void thunk(void* self) { static_cast<Call*>(self)->make(std::index_sequence_for<A...>{}); }
};

template <class... A> int launch(const char* name, void (*kernel)(A...), const unsigned* grid_block, size_t shared, unsigned order, void** params) {
    Call<A...> call{kernel, params};
    const unsigned* g = grid_block;
    return run(Launch{name, {g[0], g[1], g[2]}, {g[3], g[4], g[5]}, shared, order, Call<A...>::thunk, &call});
}

} // namespace cuemu
