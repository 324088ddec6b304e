// Unit rows and the gradient through them. Included once per instruction set (see
// instruction_sets.cpp).

constexpr int64_t kParallel = 65536;  // elements below which waking a thread costs more

// Lengths and projections are summed in double: a row's error in length moves all its logits alike,
// and what is left of a gradient after the projection may be small.
SF_INLINE double dot(const float *a, const float *b, int64_t n) {
  double total = 0.0;
#pragma omp simd reduction(+ : total)
  for (int64_t d = 0; d < n; ++d) total += static_cast<double>(a[d]) * b[d];
  return total;
}

void normalize(const float *x, int64_t rows, int64_t width, float *unit, float *inverse_norm,
               int32_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * width > kParallel)
  for (int64_t i = 0; i < rows; ++i) {
    const float *from = x + i * width;
    float *to = unit + i * width;
    const double norm = __builtin_sqrt(dot(from, from, width));
    // A zero row has cosine 0 with everything; NaN takes the second branch and stays.
    const double inverse = norm == 0.0 ? 0.0 : 1.0 / (norm < 1e-12 ? 1e-12 : norm);
    inverse_norm[i] = static_cast<float>(inverse);
#pragma omp simd
    for (int64_t d = 0; d < width; ++d) to[d] = static_cast<float>(from[d] * inverse);
  }
}

void normalize_backward(const float *x, const float *inverse_norm, const float *g, int64_t rows,
                        int64_t width, float factor, float *out, float *projection,
                        int32_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * width > kParallel)
  for (int64_t i = 0; i < rows; ++i) {
    const float *from = x + i * width, *in = g + i * width;
    const float inverse = inverse_norm ? inverse_norm[i] : 1.0f;
    const double along = dot(from, in, width) * inverse;
    if (projection) projection[i] = static_cast<float>(along);
    if (!out) continue;
    float *to = out + i * width;
    const float scale = factor * inverse;
    // Rows shorter than 1e-12 were multiplied by a constant, so nothing is projected out.
    const float back = inverse_norm && inverse < 1e12f ? static_cast<float>(along * inverse) : 0.0f;
#pragma omp simd
    for (int64_t d = 0; d < width; ++d) to[d] = scale * SF_FMA(-back, from[d], in[d]);
  }
}
