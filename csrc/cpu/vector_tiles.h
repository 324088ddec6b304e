// A tile of a matrix product in vector registers. Included once per instruction set (see
// instruction_sets.cpp), with vectors of its width; products.h says what it needs of a tile.

// Of a tile: its sums fill 28 of 32 registers, or 12 of 16.
constexpr int64_t kHigh = SF_LANES == 16 ? 14 : 6, kWide = 2 * kLanes;
constexpr int64_t kDeep = 384;          // numbers that a sum takes in before it is written
constexpr int64_t kBlockRows = 168;     // packed kDeep deep, a quarter of the second cache
constexpr int64_t kGroupColumns = 512;  // of that many rows of the result, another third

constexpr int64_t packed(int64_t lines, int64_t depth) { return lines * depth; }

// What a thread does before its first tile, and after its last.
SF_INLINE void begin_tiles() {}
SF_INLINE void end_tiles() {}

// out (kHigh, kWide) = or += left (depth, kHigh)^T right (depth, kWide), both packed.
SF_INLINE void tile(const float *left, const float *right, int64_t depth, float *out,
                    int64_t stride, bool add, const float * /* ahead */) {
  Vector sum[kHigh][2] = {};
  for (int64_t k = 0; k < depth; ++k, left += kHigh, right += kWide) {
    const Vector low = *reinterpret_cast<const Vector *>(right);
    const Vector high = *reinterpret_cast<const Vector *>(right + kLanes);
#pragma GCC unroll 14
    for (int r = 0; r < kHigh; ++r) {
      sum[r][0] += left[r] * low;
      sum[r][1] += left[r] * high;
    }
  }
#pragma GCC unroll 14
  for (int r = 0; r < kHigh; ++r, out += stride) {
    Vector *low = reinterpret_cast<Vector *>(out), *high = low + 1;
    *low = add ? *low + sum[r][0] : sum[r][0];
    *high = add ? *high + sum[r][1] : sum[r][1];
  }
}

SF_INLINE void pack_left(const float *from, int64_t line, int64_t along, int64_t count,
                         int64_t depth, float *out) {
  pack<kHigh>(from, line, along, count, depth, out);
}

SF_INLINE void pack_right(const float *from, int64_t line, int64_t along, int64_t count,
                          int64_t depth, float *out) {
  pack<kWide>(from, line, along, count, depth, out);
}
