// Device memory whose end is guarded, and what happens when a kernel touches memory it should not.
#pragma once

namespace cuemu {
// Turns a fault inside a kernel into a failed launch; other faults go where they went before. Once per process.
void catch_faults();
// The same, for a thread of our own: gives it a stack for the handler, as the Rust runtime does for its threads.
void catch_faults_on_this_thread();
} // namespace cuemu
