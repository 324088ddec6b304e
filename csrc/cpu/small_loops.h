// A small batch, whole in one call. Included once per instruction set (see instruction_sets.cpp),
// after the loops and products that it calls.

constexpr int64_t kAlone = int64_t{1} << 20;  // multiplications of a product for one thread
constexpr int64_t kShare = 16;                // rows that a thread takes at a time

sf_rows rows_from(const sf_rows &p, int64_t begin, int64_t count) {
  sf_rows part = p;
  part.similarity += begin * p.stride;
  part.rows = count;
  part.labels += begin;
  if (p.query_ids) part.query_ids += begin;
  if (p.weight) part.weight += begin;
  for (float **member : {&part.softmax.loss, &part.softmax.offset, &part.softmax.inverse_sum,
                         &part.softmax.miss, &part.softmax.smoothing})
    if (*member) *member += begin;
  part.threads = 1;
  return part;
}

sf_square square_from(const sf_square &p, int64_t begin, int64_t count) {
  sf_square part = p;
  part.similarity += begin * p.stride;
  part.first_row = begin;
  part.rows = count;
  part.threads = 1;
  return part;
}

// The products of a small batch, in the order of the plan, and where they keep what.
struct SmallPlan {
  int threads;
  float *query, *key, *query_inverse, *key_inverse, *positive;
  sf_product similarity, of_query, of_key;

  explicit SmallPlan(const sf_small &p) {
    const int64_t rows = p.panel.rows, columns = p.panel.segments[0].width;
    const int64_t width = p.width, stride = p.panel.stride;
    float *const panel = p.panel.similarity;
    threads = rows * columns * width > kAlone ? p.panel.threads : 1;
    query = p.scratch;
    key = query + rows * width;
    query_inverse = key + columns * width;
    key_inverse = query_inverse + rows;
    positive = key_inverse + columns;
    float *const scratch = p.scratch + vectors(p);
    similarity = {query,  width, 1,       key,   1, width,   panel,
                  stride, rows,  columns, width, 0, scratch, threads};
    of_query = {panel, stride, 1,     key,     width, 1,       p.query_gradient,
                width, rows,   width, columns, 0,     scratch, threads};
    of_key = {panel, 1,       stride, query, width, 1,       p.key_gradient,
              width, columns, width,  rows,  0,     scratch, threads};
  }

  // Unit rows, inverse lengths and the pairs' similarities; what follows begins at a multiple of 64
  // bytes, if they do.
  static int64_t vectors(const sf_small &p) {
    const int64_t rows = p.panel.rows, columns = p.panel.segments[0].width;
    return pieces((rows + columns) * (p.width + 1) + rows, 16) * 16;
  }
};

int64_t small_scratch(const sf_small &p) {
  const SmallPlan plan(p);
  int64_t most = product_scratch(plan.similarity);
  if (p.query_gradient) most = larger(most, product_scratch(plan.of_query));
  if (p.key_gradient) most = larger(most, product_scratch(plan.of_key));
  return SmallPlan::vectors(p) + most;
}

// Similarities -> losses and gradients of both directions, by every thread of a team.
void square_together(const sf_rows &panel, sf_square p, float *positive) {
  const int64_t n = panel.rows;
  p.similarity = panel.similarity;
  p.stride = panel.stride;
  p.positive = positive;
  p.columns = n;
  const sf_square whole = square_from(p, 0, n);
#pragma omp for schedule(static)
  for (int64_t i = 0; i < n; i += kShare) {
    const int64_t count = smaller(kShare, n - i);
    for (int64_t k = i; k < i + count; ++k) positive[k] = panel.similarity[k * panel.stride + k];
    sf_rows part = rows_from(panel, i, count);
    part.write_gradient = 0;
    rows(part);
  }
#pragma omp for schedule(static)
  for (int64_t first = 0; first < n; first += kStrip)
    choose<Strip>(ColumnRange{whole, first, smaller(kStrip, n - first)});
#pragma omp single
  columns_end(whole);
  if (!panel.write_gradient) return;
#pragma omp for schedule(static)
  for (int64_t i = 0; i < n; i += kShare) square(square_from(p, i, smaller(kShare, n - i)));
}

void small(const sf_small &p) {
  const SmallPlan plan(p);
  const int64_t queries = p.panel.rows, keys = p.panel.segments[0].width, width = p.width;
  const auto share = [](int64_t begin, int64_t rows) { return smaller(kShare, rows - begin); };
#pragma omp parallel num_threads(plan.threads)
  {
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < queries; i += kShare)
      normalize(p.query + i * width, share(i, queries), width, plan.query + i * width,
                plan.query_inverse + i, 1);
#pragma omp for schedule(static)
    for (int64_t j = 0; j < keys; j += kShare)
      normalize(p.key + j * width, share(j, keys), width, plan.key + j * width,
                plan.key_inverse + j, 1);
    multiply_together(plan.similarity);
    if (p.square) {
      square_together(p.panel, *p.square, plan.positive);
    } else {
#pragma omp for schedule(static)
      for (int64_t i = 0; i < queries; i += kShare) rows(rows_from(p.panel, i, share(i, queries)));
    }
    if (float *out = p.query_gradient) {
      multiply_together(plan.of_query);
#pragma omp for schedule(static) nowait
      for (int64_t i = 0; i < queries; i += kShare) {
        normalize_backward(p.query + i * width, plan.query_inverse + i, out + i * width,
                           share(i, queries), width, p.factor, out + i * width,
                           p.projection ? p.projection + i : nullptr, 1);
      }
    }
    if (float *out = p.key_gradient) {
      multiply_together(plan.of_key);
#pragma omp for schedule(static) nowait
      for (int64_t j = 0; j < keys; j += kShare) {
        normalize_backward(p.key + j * width, plan.key_inverse + j, out + j * width, share(j, keys),
                           width, p.factor, out + j * width, nullptr, 1);
      }
    }
  }
  double total = 0.0;
  for (int64_t i = 0; i < queries; ++i) {
    const double weight = p.panel.weight ? p.panel.weight[i] : p.panel.uniform_weight;
    total += weight * p.panel.softmax.loss[i];
    if (p.square) total += weight * p.square->column.loss[i];
  }
  *p.total = static_cast<float>(total);
}
