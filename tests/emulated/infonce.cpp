// csrc/cuda/infonce.cu for the emulated machine, and what a test sets.
#include <infonce.cu>

extern "C" SF_API void sf_emulate(uint32_t seed, int32_t resident) {
  hopper::settings.seed = seed, hopper::settings.resident = resident;
}
