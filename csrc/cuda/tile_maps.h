// Where things are: tiles in a panel, stages and barriers in shared memory, sums in registers.
//
// A cluster of two blocks works on 256 x 256 similarities at a time. Each block has 128 of the
// rows, 64 for each of its two consumers, and both blocks need all 256 columns, of which each loads
// half and sends it to both. docs/loss-gpu.md counts the bytes that made it so.
#ifndef SIMCSE_FAST_CUDA_TILE_MAPS_H
#define SIMCSE_FAST_CUDA_TILE_MAPS_H

#include <hopper.h>

#include <cstdint>

// For comparisons: NVCC_APPEND_FLAGS="-DSF_CLUSTER=1" or "-DSF_STAGE_DEPTH=64" pip install -e .
#ifndef SF_CLUSTER
#define SF_CLUSTER 2
#endif
#ifndef SF_STAGE_DEPTH
#define SF_STAGE_DEPTH 32
#endif

namespace infonce {

constexpr int kWarp = 32, kGroup = 128;  // threads
constexpr int kBlocks = SF_CLUSTER;      // of a cluster
constexpr int kConsumers = 2;            // warpgroups of a block that multiply
constexpr int kThreads = kGroup * (1 + kConsumers);
constexpr int kRows = 64;  // of a consumer
constexpr int kBlockRows = kRows * kConsumers;
constexpr int kClusterRows = kBlockRows * kBlocks;
constexpr int kColumns = 256;  // of all
constexpr int kSlice = 64;     // columns that are stored together
constexpr int kDepth = SF_STAGE_DEPTH;
constexpr int kStep = 16;  // of one instruction
constexpr int kStages = 256 / kDepth;
constexpr int kStrip = 4;  // clusters' rows that walk over the columns together

// Shared memory, in bytes from its first multiple of 1024 on.
constexpr int kRowBytes = 2 * kDepth;
constexpr int kQueryBytes = kBlockRows * kRowBytes, kKeyBytes = kColumns * kRowBytes;
constexpr int kStageBytes = kQueryBytes + kKeyBytes;
constexpr int kSliceRowBytes = 2 * kSlice, kSliceBytes = kRows * kSliceRowBytes;
constexpr int kSlices = 2;  // of a consumer, one filled while the other is read
constexpr int kSlicesAt = kStages * kStageBytes;
constexpr int kBarriersAt = kSlicesAt + kConsumers * kSlices * kSliceBytes;
constexpr int kSharedBytes = kBarriersAt + 8 * (2 * kStages + 1);
constexpr int kSharedAlignment = 1024;
static_assert(kSharedBytes + kSharedAlignment <= 227 * 1024, "a block may have no more");

__device__ inline uint32_t queries(uint32_t shared, int stage) {
  return shared + stage * kStageBytes;
}
__device__ inline uint32_t keys(uint32_t shared, int stage) {
  return shared + stage * kStageBytes + kQueryBytes;
}
__device__ inline uint32_t slice(uint32_t shared, int consumer, int buffer) {
  return shared + kSlicesAt + (consumer * kSlices + buffer) * kSliceBytes;
}
__device__ inline uint32_t filled(uint32_t shared, int stage) {
  return shared + kBarriersAt + 8 * stage;
}
__device__ inline uint32_t emptied(uint32_t shared, int stage) {
  return shared + kBarriersAt + 8 * (kStages + stage);
}
__device__ inline uint32_t turn(uint32_t shared) { return shared + kBarriersAt + 16 * kStages; }

// Where the copy engine keeps, and takes, what belongs to a byte of a box: rows of 128 bytes, whose
// eight pieces of 16 change places with the row.
__device__ inline uint32_t swizzled(uint32_t address) { return address ^ (address >> 3 & 0x70); }

// A tile's place; kStrip rows of tiles go together, so that keys are met in the second cache.
struct Place {
  int row, column;
};
__device__ inline Place place_of(int tile, int rows, int columns) {
  const int strip = kStrip * columns;
  const int first = tile / strip * kStrip, within = tile % strip;
  const int height = rows - first < kStrip ? rows - first : kStrip;
  return {first + within % height, within / height};
}

// Row and column, of 64 x 256, of a thread's i-th sum.
__device__ inline int fragment_row(int thread, int i) {
  return thread / kWarp * 16 + thread % kWarp / 4 + 8 * (i >> 1 & 1);
}
__device__ inline int fragment_column(int thread, int i) {
  return i / 4 * 8 + thread % 4 * 2 + (i & 1);
}

// Stage and parity of a count of steps.
struct Pipeline {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void next() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

}  // namespace infonce

#endif
