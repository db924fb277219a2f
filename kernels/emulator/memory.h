// Device memory whose end is guarded, and what happens when a kernel touches memory it should not.
#pragma once

namespace cuemu {
// Turns faults inside kernels of this thread into failed launches; other faults go where they went before.
void catch_faults();
} // namespace cuemu
