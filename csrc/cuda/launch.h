// Tensor maps and launches: what a kernel needs of the host. Included as <launch.h>, for the same
// reason as <hopper.h>.
#ifndef SIMCSE_FAST_CUDA_LAUNCH_H
#define SIMCSE_FAST_CUDA_LAUNCH_H

#include <cuda.h>
#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <cstdio>

namespace hopper {

// What was refused last in this thread, for the message of an exception.
inline thread_local char refusal[128] = "";

inline bool refused(const char *what, int code, const char *why) {
  std::snprintf(refusal, sizeof refusal, "%s: error %d, %s", what, code, why);
  cudaGetLastError();  // which would be told of to somebody else
  return false;
}

inline bool done(cudaError_t error, const char *what) {
  return error == cudaSuccess || refused(what, error, cudaGetErrorName(error));
}

// Make a device this thread's, with its context.
inline bool use(int device) { return done(cudaSetDevice(device), "cudaSetDevice"); }

// The driver's function, found at run time: the library loads where there is no driver.
inline auto tensor_map_encoder() {
  static std::atomic<decltype(&cuTensorMapEncodeTiled)> found;
  if (found == nullptr) {
    void *function = nullptr;
    cudaDriverEntryPointQueryResult result;
    if (done(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                              cudaEnableDefault, &result),
             "cudaGetDriverEntryPointByVersion")) {
      found = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
    }
  }
  return found.load();
}

// A matrix of bf16 (rows, columns) with `stride` numbers between rows, moved in boxes of
// (box_rows, box_columns) numbers, 32 or 64 wide, and swizzled by that width; what lies outside is
// read as 0 and not written.
inline bool make_tensor_map(CUtensorMap &map, const void *matrix, int64_t rows, int64_t columns,
                            int64_t stride, int box_rows, int box_columns) {
  const auto encode = tensor_map_encoder();
  if (encode == nullptr) return refused("cuTensorMapEncodeTiled", 0, "not in this driver");
  const cuuint64_t size[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t bytes[1] = {static_cast<cuuint64_t>(stride) * 2};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(box_columns),
                             static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t step[2] = {1, 1};
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void *>(matrix), size, bytes,
             box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
             box_columns == 32 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS || refused("cuTensorMapEncodeTiled", result, "of the driver");
}

// Launch a kernel in clusters of `size` blocks on the device in use: as many as it holds at once,
// at most `most`, because each walks over the work until there is none left.
template <auto kKernel, typename... Arguments>
bool launch(int device, void *stream, int size, int64_t most, int threads, int shared,
            const Arguments &...arguments) {
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(size), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(size);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = 1;
  constexpr int kDevices = 64;
  static std::atomic<int> resident[kDevices];
  if (device < 0 || device >= kDevices) return refused("device", device, "0 to 63 are known");
  if (resident[device] == 0) {
    int found = 0;
    if (!done(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
              "cudaFuncSetAttribute") ||
        !done(cudaOccupancyMaxActiveClusters(&found, kKernel, &config),
              "cudaOccupancyMaxActiveClusters")) {
      return false;
    }
    if (found == 0) return refused("cudaOccupancyMaxActiveClusters", 0, "no cluster fits");
    resident[device] = found;
  }
  const int64_t count = resident[device];
  config.gridDim.x = static_cast<unsigned>(size * (most < count ? most : count));
  return done(cudaLaunchKernelEx(&config, kKernel, arguments...), "cudaLaunchKernelEx");
}

}  // namespace hopper

#endif
