// The functions of csrc/cuda/launch.h, for the emulated machine: clusters run one after the other.
#ifndef SIMCSE_FAST_TESTS_LAUNCH_H
#define SIMCSE_FAST_TESTS_LAUNCH_H

#include <hopper.h>

namespace hopper {

inline struct {
  uint32_t seed = 0;
  int resident = 2;  // clusters that the device holds at once
} settings;

inline thread_local char refusal[256] = "";

inline bool use(int) { return true; }

inline bool make_tensor_map(TensorMap &map, const void *matrix, int64_t rows, int64_t columns,
                            int64_t stride, int box_rows, int box_columns) {
  map = {static_cast<uint16_t *>(const_cast<void *>(matrix)),
         rows,
         columns,
         stride,
         box_rows,
         box_columns};
  return true;
}

template <auto kKernel, typename... Arguments>
bool launch(int, void *, int size, int64_t most, int threads, int shared,
            const Arguments &...arguments) {
  std::string error = shared > emulated::kArena ? "more shared memory than there is" : "";
  const int count = static_cast<int>(std::min<int64_t>(most, settings.resident));
  for (int cluster = 0; cluster < count && error.empty(); ++cluster) {
    emulated::Machine machine(size, threads, settings.seed + static_cast<uint32_t>(cluster));
    machine.cluster = cluster, machine.clusters = count;
    try {
      machine.run([&] { kKernel(arguments...); });
    } catch (const std::exception &found) {
      error = found.what();
    }
  }
  std::snprintf(refusal, sizeof refusal, "%s", error.c_str());
  return error.empty();
}

}  // namespace hopper

#endif
