// From similarities in registers to logits: what rows and columns add, and which are left out. The
// names are those of kernels/infonce/triton_epilogue.py.
#ifndef SIMCSE_FAST_CUDA_LOGITS_H
#define SIMCSE_FAST_CUDA_LOGITS_H

#include "simcse_fast.h"
#include "tile_maps.h"

namespace infonce {

using hopper::kSums;

constexpr double kLog2e = 1.44269504088896341;
constexpr float kNone = -__builtin_inff();  // the logit of a column that is left out
constexpr float kRounding = 0x1p-20f;       // ROUNDING of triton_math.py

// What a kernel is for: sums of each row over a tile; those and exponentials for the panel; those
// and sums of each column; gradients of rows; of rows and columns.
enum class Kind { kRowSums, kPanel, kBothSums, kRowGradients, kBothGradients };

__host__ __device__ constexpr bool sums(Kind kind) { return kind <= Kind::kBothSums; }
__host__ __device__ constexpr bool stores(Kind kind) {
  return kind != Kind::kRowSums && kind != Kind::kBothSums;
}
__host__ __device__ constexpr bool by_column(Kind kind) {
  return kind == Kind::kBothSums || kind == Kind::kBothGradients;
}

struct Job {
  sf_infonce_products in;
  sf_infonce_sums sums;
  sf_infonce_gradients gradients;
  int row_tiles = 0, column_tiles = 0, tiles = 0;  // of clusters
  int steps = 0;                                   // of kDepth
  int lead = 0;  // of the first consumer before the second, in steps
};

// A thread of a consumer.
struct Seat {
  uint32_t shared;
  int consumer, thread;
  __device__ int lane() const { return thread % kWarp; }
  __device__ int barrier() const { return 1 + consumer; }  // numbered; 0 is the whole block's
  __device__ uint32_t slice(int buffer) const { return infonce::slice(shared, consumer, buffer); }
};

// A consumer's 64 x 256 similarities. A thread's i-th sum stands in row + fragment_row(0, i) and
// first + fragment_column(0, i).
struct Tile {
  int64_t row;  // the tile's
  int column;
  int own_row;  // the thread's first row, less the tile's
  int first;    // its first column
  __device__ bool has_row(const Job &job, int r) const {
    return row + own_row + 8 * r < job.in.rows;
  }
};

// All that turns a similarity into a logit above the offset, in units of log2.
struct Scale {
  float slope, own_slope, offset;
};

__device__ inline Scale scale_of(const sf_infonce_products &in) {
  const double scale = in.numbers[0];
  return {static_cast<float>((scale + in.hardness) * kLog2e),
          static_cast<float>((scale + in.own_hardness) * kLog2e),
          static_cast<float>(in.numbers[1])};
}

__device__ inline float logit(float similarity, float slope, float offset) {
  return __builtin_fmaf(similarity, slope, -offset);
}

// The logit above which a column is too like a positive.
__device__ inline float margin_bound(const Job &job, const Scale &scale, float positive) {
  const float bound = positive + job.in.margin + __builtin_fabsf(positive) * kRounding;
  return logit(bound, scale.slope, scale.offset);
}

// One of the two rows of which a thread holds sums.
struct Row {
  int label = -1;
  int64_t id = 0;
  float bound = 0, factor = 0, own_gradient = 0;
};

template <Kind kKind, bool kMasks>
__device__ inline Row row_of(const Job &job, const Scale &scale, int64_t index) {
  Row row;
  if (index >= job.in.rows) return row;
  row.label = static_cast<int>(job.in.labels[index]);
  if (kMasks && job.in.query_ids) row.id = job.in.query_ids[index];
  if (kMasks && job.in.positive) row.bound = margin_bound(job, scale, job.in.positive[index]);
  if (!sums(kKind)) {
    row.factor = job.gradients.row_factor[index];
    if (job.in.own == SF_OWN_POSITIVE) row.own_gradient = job.gradients.own[index];
  }
  return row;
}

// What a column adds to a tile: each thread reads it for two of them before the products, and after
// those all find it in shared memory, factors and behind them bounds.
struct Column {
  float factor = 0, bound = 0;
};
constexpr int kBoundsAt = 4 * kColumns;

template <Kind kKind, bool kMasks>
__device__ inline Column column_of(const Job &job, const Scale &scale, int64_t index) {
  Column column;
  if (!by_column(kKind) || index >= job.in.columns) return column;
  if (!sums(kKind)) column.factor = job.gradients.column_factor[index];
  if (kMasks && job.in.positive) column.bound = margin_bound(job, scale, job.in.opposite[index]);
  return column;
}

// Returns where they are: in the slice that is stored last.
__device__ inline uint32_t share(const Column (&columns)[2], const Seat &seat) {
  const uint32_t to = seat.slice(kSlices - 1);
  if (seat.thread == 0) hopper::wait_stores<0>();
  hopper::sync(seat.barrier(), kGroup);  // the last tile has left it
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t at = to + 4 * (seat.thread + i * kGroup);
    hopper::put(at, __float_as_uint(columns[i].factor));
    hopper::put(at + kBoundsAt, __float_as_uint(columns[i].bound));
  }
  hopper::sync(seat.barrier(), kGroup);
  return to;
}

// Whether a thread's i-th sum stands in a row's own column.
__device__ inline bool is_own(const Row &row, const Tile &tile, int i) {
  return row.label - tile.first == fragment_column(0, i);
}

__device__ inline bool holds_label(const Row (&rows)[2], const Tile &tile) {
  const auto inside = [&tile](int label) {
    return label >= tile.column && label < tile.column + kColumns;
  };
  return hopper::any_lane(inside(rows[0].label) || inside(rows[1].label));
}

// kNone where a column has its row's id. The loop that loads ids is not unrolled, so that a few of
// them are in registers at a time, and leaves bits.
__device__ inline void leave_out_same_ids(float (&t)[kSums], const Job &job, const Row (&rows)[2],
                                          const Tile &tile) {
#pragma unroll
  for (int part = 0; part < kSums; part += 32) {
    uint32_t same = 0;
#pragma unroll 1
    for (int i = 0; i < 32; i += 4) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int64_t k = tile.first + fragment_column(0, part + i + j);
        const int64_t id = k < job.in.columns ? job.in.key_ids[k] : 0;
        same |= uint32_t{id == rows[0].id} << (i + j) | uint32_t{id == rows[1].id} << (i + j + 2);
      }
    }
#pragma unroll
    for (int i = 0; i < 32; ++i) t[part + i] = same >> i & 1 ? kNone : t[part + i];
  }
}

// Logits above the offset in place of similarities, kNone where both directions leave one out.
template <Kind kKind, bool kMasks>
__device__ inline void make_logits(float (&t)[kSums], const Job &job, const Scale &scale,
                                   const Row (&rows)[2], const Tile &tile) {
  const bool holds = holds_label(rows, tile), kept = job.in.own == SF_OWN_KEPT;
  if (holds && kept) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      const bool own = is_own(rows[i >> 1 & 1], tile, i);
      t[i] = logit(t[i], own ? scale.own_slope : scale.slope, scale.offset);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kSums; ++i) t[i] = logit(t[i], scale.slope, scale.offset);
  }
  if (holds && !kept) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) t[i] = is_own(rows[i >> 1 & 1], tile, i) ? kNone : t[i];
  }
  if (tile.column + kColumns > job.in.columns) {
    const int left = static_cast<int>(job.in.columns) - tile.first;
#pragma unroll
    for (int i = 0; i < kSums; ++i) t[i] = fragment_column(0, i) < left ? t[i] : kNone;
  }
  if (by_column(kKind) && tile.row + kRows > job.in.rows) {  // a column would count them
    const bool there[2] = {tile.has_row(job, 0), tile.has_row(job, 1)};
#pragma unroll
    for (int i = 0; i < kSums; ++i) t[i] = there[i >> 1 & 1] ? t[i] : kNone;
  }
  if (kMasks && job.in.key_ids) leave_out_same_ids(t, job, rows, tile);
}

// The exponential of a logit, 0 where one direction's margin leaves it out.
template <bool kMasks>
__device__ inline float exponential(const Job &job, float t, float bound) {
  return hopper::exp2_of(kMasks && job.in.positive && t > bound ? kNone : t);
}

}  // namespace infonce

#endif
