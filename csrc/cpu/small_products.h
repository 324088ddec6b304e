// Matrix products of small batches, where a call into a BLAS costs more than its work. Included
// once per instruction set (see infonce.cpp); about half the speed of a BLAS where both are warm.

typedef float Vector __attribute__((vector_size(64), aligned(4)));  // wherever it stands in memory
constexpr int64_t kLanes = 16;

SF_INLINE Vector load(const float *from) { return *reinterpret_cast<const Vector *>(from); }

SF_INLINE float total_of(const Vector &v) {
  typedef float Half __attribute__((vector_size(32)));
  typedef float Quarter __attribute__((vector_size(16)));
  const Half half = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                    __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  const Quarter quarter = __builtin_shufflevector(half, half, 0, 1, 2, 3) +
                          __builtin_shufflevector(half, half, 4, 5, 6, 7);
  return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}

// out[r][c] = <a[r], b[c]> for R x C rows.
template <int R, int C>
SF_INLINE void dots(const float *a, const float *b, int64_t width, float *out, int64_t stride) {
  Vector sum[R][C] = {};
  int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sum[r][c] += load(a + r * width + d) * load(b + c * width + d);
  }
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) {
      float total = total_of(sum[r][c]);
      for (int64_t e = d; e < width; ++e) total += a[r * width + e] * b[c * width + e];
      out[r * stride + c] = total;
    }
  }
}

template <int R>
SF_INLINE void rows_of_similarities(const float *a, const float *b, int64_t columns, int64_t width,
                                    float *out) {
  int64_t j = 0;
  for (; j + 4 <= columns; j += 4) dots<R, 4>(a, b + j * width, width, out + j, columns);
  for (; j < columns; ++j) dots<R, 1>(a, b + j * width, width, out + j, columns);
}

// a (rows, width), b (columns, width) -> out (rows, columns) = a b^T.
SF_INLINE void similarities(const float *a, const float *b, int64_t rows, int64_t columns,
                            int64_t width, float *out) {
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4)
    rows_of_similarities<4>(a + i * width, b, columns, width, out + i * columns);
  for (; i < rows; ++i)
    rows_of_similarities<1>(a + i * width, b, columns, width, out + i * columns);
}

// out[r][0 ... 16 V) = sum_j weight[r * across + j * along] * b[j][0 ... 16 V) for R rows.
template <int R, int V>
SF_INLINE void weighted_sum(const float *weight, int64_t across, int64_t along, const float *b,
                            int64_t count, int64_t width, float *out) {
  Vector sum[R][V] = {};
  for (int64_t j = 0; j < count; ++j) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const float w = weight[r * across + j * along];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] += w * load(b + j * width + v * kLanes);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v)
      *reinterpret_cast<Vector *>(out + r * width + v * kLanes) = sum[r][v];
}

template <int R>
SF_INLINE void rows_of_sums(const float *weight, int64_t across, int64_t along, const float *b,
                            int64_t count, int64_t width, float *out) {
  int64_t d = 0;
  for (; d + 4 * kLanes <= width; d += 4 * kLanes)
    weighted_sum<R, 4>(weight, across, along, b + d, count, width, out + d);
  for (; d + kLanes <= width; d += kLanes)
    weighted_sum<R, 1>(weight, across, along, b + d, count, width, out + d);
  for (; d < width; ++d) {
    for (int r = 0; r < R; ++r) {
      float total = 0.0f;
      for (int64_t j = 0; j < count; ++j)
        total += weight[r * across + j * along] * b[j * width + d];
      out[r * width + d] = total;
    }
  }
}

// out (rows, width) = weight b, weight (rows, count) with the given strides, b (count, width).
SF_INLINE void weighted_sums(const float *weight, int64_t across, int64_t along, const float *b,
                             int64_t rows, int64_t count, int64_t width, float *out) {
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4)
    rows_of_sums<4>(weight + i * across, across, along, b, count, width, out + i * width);
  for (; i < rows; ++i)
    rows_of_sums<1>(weight + i * across, across, along, b, count, width, out + i * width);
}
