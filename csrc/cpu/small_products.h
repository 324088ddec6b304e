// Matrix products of small batches, where a call into a BLAS costs more than its work. Included
// once per instruction set (see infonce.cpp), with vectors of its width; about half the speed of a
// BLAS where both are warm.

constexpr int64_t kLanes = SF_LANES;
constexpr int kTile = SF_LANES == 16 ? 4 : 2;  // vectors of a tile of 4 rows; 32 or 16 registers

typedef float Vector __attribute__((vector_size(4 * SF_LANES), aligned(4)));  // wherever it stands

// out[r][0 ... V kLanes) = sum_j weight[r * across + j * along] * b[j][0 ... V kLanes), R rows.
template <int R, int V>
SF_INLINE void tile_of_sums(const float *weight, int64_t across, int64_t along, const float *b,
                            int64_t stride, int64_t count, int64_t width, float *out) {
  Vector sum[R][V] = {};
  for (int64_t j = 0; j < count; ++j) {
    const float *from = b + j * stride;
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const float w = weight[r * across + j * along];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v)
        sum[r][v] += w * *reinterpret_cast<const Vector *>(from + v * kLanes);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v)
      *reinterpret_cast<Vector *>(out + r * width + v * kLanes) = sum[r][v];
}

template <int R>
SF_INLINE void rows_of_sums(const float *weight, int64_t across, int64_t along, const float *b,
                            int64_t stride, int64_t count, int64_t width, float *out) {
  int64_t d = 0;
  for (; d + kTile * kLanes <= width; d += kTile * kLanes)
    tile_of_sums<R, kTile>(weight, across, along, b + d, stride, count, width, out + d);
  for (; d + kLanes <= width; d += kLanes)
    tile_of_sums<R, 1>(weight, across, along, b + d, stride, count, width, out + d);
  for (; d < width; ++d) {
    for (int r = 0; r < R; ++r) {
      float total = 0.0f;
      for (int64_t j = 0; j < count; ++j)
        total += weight[r * across + j * along] * b[j * stride + d];
      out[r * width + d] = total;
    }
  }
}

// out (rows, width) = weight b, weight (rows, count) with the given strides, b (count, width) with
// rows `stride` apart.
SF_INLINE void weighted_sums(const float *weight, int64_t across, int64_t along, const float *b,
                             int64_t stride, int64_t rows, int64_t count, int64_t width,
                             float *out) {
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4)
    rows_of_sums<4>(weight + i * across, across, along, b, stride, count, width, out + i * width);
  for (; i < rows; ++i)
    rows_of_sums<1>(weight + i * across, across, along, b, stride, count, width, out + i * width);
}

// Columns [0, padded) of out (width, stride) = a^T, a (rows, width) with rows `apart`; those beyond
// the rows are zero. In blocks of 8 rows by 16 columns: as many cache lines as a set has ways.
SF_INLINE void transpose(const float *a, int64_t apart, int64_t rows, int64_t padded, int64_t width,
                         int64_t stride, float *out) {
  const auto block = [&](int64_t i, int64_t d, int64_t high, int64_t wide) {
    for (int64_t e = d; e < d + wide; ++e)
      for (int64_t j = i; j < i + high; ++j) out[e * stride + j] = a[j * apart + e];
  };
  int64_t i = 0;
  for (; i + 8 <= rows; i += 8) {
    int64_t d = 0;
    for (; d + 16 <= width; d += 16) block(i, d, 8, 16);
    block(i, d, 8, width - d);
  }
  block(i, 0, rows - i, width);
  for (int64_t d = 0; d < width; ++d)
    for (int64_t j = rows; j < padded; ++j) out[d * stride + j] = 0.0f;
}
