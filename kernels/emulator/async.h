// common/async.cuh on the host. Included by emulator.h.
#pragma once
#include "scheduler.h"

inline void copy_async(void* to_shared, const void* from, bool there = true) { cuemu::start_copy(to_shared, from, there ? 16 : 0, 16); }
inline void copy_commit() { cuemu::thread->group++; }
template <int PENDING> void copy_wait() { cuemu::finish_copies(PENDING); }
