// The uniformity of a few rows, whole in one call. Included once per instruction set (see
// instruction_sets.cpp), after the loops and products that it calls.

// Where its scratch keeps what, and its products: both halves of all pairs, so that one product
// gives the gradient.
struct FewPlan {
  int threads;
  double *sum;  // (rows) of a row's potentials
  float *unit, *inverse, *bias, *mean;
  sf_product similarity, gradient;

  explicit FewPlan(const sf_few &p) {
    const int64_t n = p.rows, width = p.width;
    threads = n * n * width > kAlone ? p.threads : 1;
    sum = reinterpret_cast<double *>(p.scratch);
    inverse = p.scratch + 2 * n;
    bias = inverse + n;
    mean = bias + n;
    unit = p.scratch + before(p);
    float *const panel = unit + pieces(n * width, 16) * 16;
    float *const rest = panel + pieces(n * n, 16) * 16;
    similarity = {unit, width, 1, unit, 1, width, panel, n, n, n, width, 0, rest, threads};
    gradient = {panel, n, 1, unit, width, 1, p.gradient, width, n, width, n, 0, rest, threads};
  }

  static int64_t before(const sf_few &p) { return pieces(4 * p.rows + p.width, 16) * 16; }

  // In floats.
  int64_t scratch(const sf_few &p) const {
    const int64_t kept = pieces(p.rows * p.width, 16) * 16 + pieces(p.rows * p.rows, 16) * 16;
    int64_t most = product_scratch(similarity);
    if (p.gradient) most = larger(most, product_scratch(gradient));
    return before(p) + kept + most;
  }
};

int64_t few_scratch(const sf_few &p) { return FewPlan(p).scratch(p); }

SF_INLINE void mean_of_strip(const FewPlan &plan, const sf_few &p, int64_t first, int64_t n) {
  double sum[kStrip] = {};
  for (int64_t i = 0; i < p.rows; ++i) {
    const float *row = plan.unit + i * p.width + first;
#pragma omp simd
    for (int64_t d = 0; d < n; ++d) sum[d] += row[d];
  }
  for (int64_t d = 0; d < n; ++d) plan.mean[first + d] = static_cast<float>(sum[d] / p.rows);
}

SF_INLINE void centre(const FewPlan &plan, const sf_few &p, int64_t i) {
  float *row = plan.unit + i * p.width;
#pragma omp simd
  for (int64_t d = 0; d < p.width; ++d) row[d] -= plan.mean[d];
  plan.bias[i] = static_cast<float>(p.slope / 2 * dot(row, row, p.width));
}

// What pulls rows to the others, by their potentials, and through their lengths.
SF_INLINE void gradient_of_rows(const FewPlan &plan, const sf_few &p, int64_t begin, int64_t count,
                                float factor) {
  const int64_t width = p.width;
  for (int64_t i = begin; i < begin + count; ++i) {
    const float *row = plan.unit + i * width, own = static_cast<float>(plan.sum[i]);
    float *g = p.gradient + i * width;
#pragma omp simd
    for (int64_t d = 0; d < width; ++d) g[d] = SF_FMA(-own, row[d], g[d]);
  }
  float *g = p.gradient + begin * width;
  normalize_backward(p.x + begin * width, plan.inverse + begin, g, count, width, factor, g, nullptr,
                     1);
}

void few(const sf_few &p) {
  const FewPlan plan(p);
  const int64_t n = p.rows;
  const auto share = [n](int64_t begin) { return smaller(kShare, n - begin); };
  double pairs = 0.0;
#pragma omp parallel num_threads(plan.threads)
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < n; i += kShare)
      normalize(p.x + i * p.width, share(i), p.width, plan.unit + i * p.width, plan.inverse + i, 1);
#pragma omp for schedule(static)
    for (int64_t first = 0; first < p.width; first += kStrip)
      mean_of_strip(plan, p, first, smaller(kStrip, p.width - first));
#pragma omp for schedule(static)
    for (int64_t i = 0; i < n; ++i) centre(plan, p, i);
    multiply_together(plan.similarity);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < n; ++i) {
      float *s = plan.similarity.out + i * n;
      const PotentialsOfRow row{Slope(p.slope), plan.bias[i], 0.0f, plan.bias, s};
      plan.sum[i] = row.take(0, i).sum + row.take(i + 1, n).sum;
      s[i] = 0.0f;
    }
#pragma omp single  // in one order, whatever the number of threads
    for (int64_t i = 0; i < n; ++i) pairs += plan.sum[i] / 2;
    if (p.gradient) {
      multiply_together(plan.gradient);
      const float factor = static_cast<float>(p.slope * kLn2 / pairs);
#pragma omp for schedule(static)
      for (int64_t i = 0; i < n; i += kShare) gradient_of_rows(plan, p, i, share(i), factor);
    }
  }
  *p.total = pairs;
}
