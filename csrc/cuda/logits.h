// From similarities in registers to exponentials of logits: what rows and columns add, and which
// similarities are left out.
#ifndef SIMCSE_FAST_CUDA_LOGITS_H
#define SIMCSE_FAST_CUDA_LOGITS_H

#include "simcse_fast.h"
#include "tile_maps.h"

namespace infonce {

using hopper::kSums;

constexpr double kLog2e = 1.44269504088896341;
constexpr float kNone = -__builtin_inff();  // the similarity, and the logit, of what is left out
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
  // Of factors, bounds and ids of columns: in the slice that is stored last.
  __device__ uint32_t columns() const { return slice(kSlices - 1); }
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

// All that turns a similarity into a logit above the offset, in units of log2. An own column that
// is kept under another slope has its similarity multiplied by their ratio, which two floats hold.
struct Scale {
  float slope, offset, ratio, rest;
};

__device__ inline Scale scale_of(const sf_infonce_products &in) {
  const double scale = in.numbers[0];
  const double ratio = (scale + in.own_hardness) / (scale + in.hardness);
  const float high = static_cast<float>(ratio);
  const float slope = static_cast<float>((scale + in.hardness) * kLog2e);
  return {slope == 0 ? 0x1p-126f : slope,  // times minus infinity it is no number
          static_cast<float>(in.numbers[1]), high, static_cast<float>(ratio - high)};
}

// The exponential of a similarity's logit; 0 where one direction's margin leaves it out.
template <bool kMargin>
__device__ inline float exponential(const Scale &scale, float x, float bound) {
  const float kept = kMargin && x > bound ? kNone : x;
  return hopper::exp2_of(__builtin_fmaf(kept, scale.slope, -scale.offset));
}

// The similarity above which a column is too like a positive; without a margin, infinity.
__device__ inline float margin_bound(const Job &job, float positive) {
  if (!job.in.positive) return __builtin_inff();
  return positive + job.in.margin + __builtin_fabsf(positive) * kRounding;
}

// One of the two rows of which a thread holds sums. It is loaded before the products, and nothing
// is made of what was loaded until they are done.
struct Row {
  int label = -1;
  int64_t id = 0;
  float positive = 0, factor = 0, own_gradient = 0;
};

template <Kind kKind, bool kMasks>
__device__ inline Row row_of(const Job &job, int64_t index) {
  Row row;
  if (index >= job.in.rows) return row;
  const int64_t label = job.in.labels[index];
  row.label = label >= 0 && label < job.in.columns ? static_cast<int>(label) : -1;
  if (kMasks && job.in.query_ids) row.id = job.in.query_ids[index];
  if (kMasks && job.in.positive) row.positive = job.in.positive[index];
  if (!sums(kKind)) {
    row.factor = job.gradients.row_factor[index];
    if (job.in.own == SF_OWN_POSITIVE) row.own_gradient = job.gradients.own[index];
  }
  return row;
}

// What a column adds to a tile: each thread loads two of them before the products, and after those
// all find them in shared memory: factors, behind them bounds of the margin, behind them ids.
struct Column {
  int64_t id = 0;
  float positive = 0, factor = 0;
};
constexpr int kBoundsAt = 4 * kColumns, kIdsAt = 8 * kColumns;

template <Kind kKind, bool kMasks>
__host__ __device__ constexpr bool uses_columns() {
  return kMasks || kKind == Kind::kBothGradients;
}

template <Kind kKind, bool kMasks>
__device__ inline Column column_of(const Job &job, int64_t index) {
  Column column;
  if (!uses_columns<kKind, kMasks>() || index >= job.in.columns) return column;
  if (kMasks && job.in.key_ids) column.id = job.in.key_ids[index];
  if (kKind == Kind::kBothGradients) column.factor = job.gradients.column_factor[index];
  if (by_column(kKind) && kMasks && job.in.positive) column.positive = job.in.opposite[index];
  return column;
}

// Put them where Seat::columns() says.
template <bool kMasks>
__device__ inline void share(const Column (&columns)[2], const Job &job, const Seat &seat) {
  if (seat.thread == 0) hopper::wait_stores<0>();
  hopper::sync(seat.barrier(), kGroup);  // the last tile has left it
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int k = seat.thread + i * kGroup;
    hopper::put(seat.columns() + 4 * k, __float_as_uint(columns[i].factor));
    if (!kMasks) continue;
    const float bound = margin_bound(job, columns[i].positive);
    hopper::put(seat.columns() + kBoundsAt + 4 * k, __float_as_uint(bound));
    hopper::put(seat.columns() + kIdsAt + 8 * k, static_cast<uint32_t>(columns[i].id));
    hopper::put(seat.columns() + kIdsAt + 8 * k + 4, static_cast<uint32_t>(columns[i].id >> 32));
  }
  hopper::sync(seat.barrier(), kGroup);
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

// kNone where a column has its row's id. The loop is not unrolled, so that a few ids are in
// registers at a time, and leaves bits.
__device__ inline void leave_out_same_ids(float (&x)[kSums], const Row (&rows)[2], const Tile &tile,
                                          const Seat &seat) {
  const uint32_t ids = seat.columns() + kIdsAt + 8 * (tile.first - tile.column);
#pragma unroll
  for (int part = 0; part < kSums; part += 32) {
    uint32_t same = 0;
#pragma unroll 2
    for (int i = 0; i < 32; i += 4) {
      const hopper::TwoIds two = hopper::get_ids(ids + 8 * fragment_column(0, part + i));
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        same |= uint32_t{two.low == rows[r].id} << (i + 2 * r);
        same |= uint32_t{two.high == rows[r].id} << (i + 2 * r + 1);
      }
    }
#pragma unroll
    for (int i = 0; i < 32; ++i) x[part + i] = same >> i & 1 ? kNone : x[part + i];
  }
}

// kNone in place of similarities that both directions leave out.
template <Kind kKind, bool kMasks>
__device__ inline void leave_out(float (&x)[kSums], const Job &job, const Scale &scale,
                                 const Row (&rows)[2], const Tile &tile, const Seat &seat) {
  const bool holds = holds_label(rows, tile), kept = job.in.own == SF_OWN_KEPT;
  if (holds && !kept) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) x[i] = is_own(rows[i >> 1 & 1], tile, i) ? kNone : x[i];
  }
  if (holds && kept) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      const float own = __builtin_fmaf(x[i], scale.ratio, x[i] * scale.rest);
      x[i] = is_own(rows[i >> 1 & 1], tile, i) ? own : x[i];
    }
  }
  if (tile.column + kColumns > job.in.columns) {
    const int left = static_cast<int>(job.in.columns) - tile.first;
#pragma unroll
    for (int i = 0; i < kSums; ++i) x[i] = fragment_column(0, i) < left ? x[i] : kNone;
  }
  if (by_column(kKind) && tile.row + kRows > job.in.rows) {  // a column would count them
    const bool there[2] = {tile.has_row(job, 0), tile.has_row(job, 1)};
#pragma unroll
    for (int i = 0; i < kSums; ++i) x[i] = there[i >> 1 & 1] ? x[i] : kNone;
  }
  if (kMasks && job.in.key_ids) leave_out_same_ids(x, rows, tile, seat);
}

}  // namespace infonce

#endif
