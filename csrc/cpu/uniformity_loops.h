// Products of rows -> their Gaussian potentials. Included once per instruction set (see
// instruction_sets.cpp).

struct SumOfPotentials {
  double sum;
  float largest;
};

// Products of one row with others -> potentials, in place.
struct PotentialsOfRow {
  Slope slope;
  float bias, offset;
  const float *biases;  // of the others
  float *s;

  SF_INLINE SumOfPotentials take(int64_t begin, int64_t end) const {
    constexpr int64_t kChunk = 4096;  // float sums stay short, the long sum is in double
    SumOfPotentials found = {0.0, -kInfinity};
    for (int64_t first = begin; first < end; first += kChunk) {
      const int64_t last = smaller(end, first + kChunk);
      float sum = 0.0f, top = -kInfinity;
#pragma omp simd reduction(+ : sum) reduction(max : top)
      for (int64_t j = first; j < last; ++j) {
        const float logit = distance(slope, s[j], bias + biases[j]);
        const float e = exp2_nonpositive(logit - offset);
        top = logit > top ? logit : top;
        sum += e;
        s[j] = e;
      }
      found.sum += sum;
      found.largest = top > found.largest ? top : found.largest;
    }
    return found;
  }
};

SF_INLINE void columns_of_potentials(const sf_potentials &p, int64_t first, int64_t n) {
  float sum[kStrip] = {};
  for (int64_t i = 0; i < p.rows; ++i) {
    const float *s = p.product + i * p.stride + first;
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) sum[j] += s[j];
  }
  for (int64_t j = 0; j < n; ++j) p.column_sum[first + j] += sum[j];
}

void potentials(const sf_potentials &p) {
  float largest = *p.largest;
#pragma omp parallel num_threads(p.threads) if (p.rows * p.columns > kParallel)
  {
#pragma omp for schedule(static, 8) reduction(max : largest)
    for (int64_t i = 0; i < p.rows; ++i) {
      const int64_t right = p.first_row + i + 1 - p.first_column;  // the first column right of it
      const int64_t begin = smaller(p.columns, larger(0, right));
      float *s = p.product + i * p.stride;
      // The columns before are no pairs, or other rows'.
      if (p.keep)
        for (int64_t j = 0; j < begin; ++j) s[j] = 0.0f;
      const PotentialsOfRow row{Slope(p.slope), p.row_bias[i], static_cast<float>(p.offset),
                                p.column_bias, s};
      const SumOfPotentials found = row.take(begin, p.columns);
      p.row_sum[i] += found.sum;
      largest = found.largest > largest ? found.largest : largest;
    }
    if (p.column_sum) {
#pragma omp for schedule(static)
      for (int64_t first = 0; first < p.columns; first += kStrip)
        columns_of_potentials(p, first, smaller(kStrip, p.columns - first));
    }
  }
  *p.largest = largest;
}
