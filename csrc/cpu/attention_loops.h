// Softmax attention of short sequences, one head at a time in the first cache. Included once per
// instruction set (see instruction_sets.cpp), after the loops whose exponential it takes.
//
// A head's weights stand transposed, keys by queries: a lane holds one query, so that neither the
// largest logit nor the sum of a softmax has to cross lanes.

constexpr int64_t kTall = SF_LANES == 16 ? 8 : 4;  // rows of a tile: enough sums to hide latency
constexpr int64_t kHeadRoom = SF_ATTENTION_LENGTH * SF_ATTENTION_LENGTH;

struct Factor {
  const float *at;  // element (i, k) stands at i * row + k * column
  int64_t row, column;
};

// out (R, V vectors) = left (R, depth) right (depth, V vectors)
template <int R, int V>
SF_INLINE void head_tile(Factor left, const float *right, int64_t right_row, int64_t depth,
                         float *out, int64_t out_row) {
  Vector sum[R][V] = {};
  for (int64_t k = 0; k < depth; ++k, left.at += left.column, right += right_row) {
    const Vector *const line = reinterpret_cast<const Vector *>(right);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sum[r][v] += left.at[r * left.row] * line[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r, out += out_row) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) reinterpret_cast<Vector *>(out)[v] = sum[r][v];
  }
}

// The same for any number of rows: the last tiles overlap, and write some rows twice.
template <int V>
void head_rows(const Factor &left, const float *right, int64_t right_row, int64_t rows,
               int64_t depth, float *out, int64_t out_row) {
  for (int64_t r = 0; r < rows;) {
    int64_t size = kTall;
    while (size > rows || (size > 1 && 2 * (rows - r) <= size)) size /= 2;
    r = smaller(r, rows - size);
    const Factor from{left.at + r * left.row, left.row, left.column};
    float *const to = out + r * out_row;
    if (size == 8) head_tile<8, V>(from, right, right_row, depth, to, out_row);
    if (size == 4) head_tile<4, V>(from, right, right_row, depth, to, out_row);
    if (size == 2) head_tile<2, V>(from, right, right_row, depth, to, out_row);
    if (size == 1) head_tile<1, V>(from, right, right_row, depth, to, out_row);
    r += size;
  }
}

// out (rows, columns) = left (rows, depth) right (depth, columns), columns a multiple of kLanes.
void head_product(const Factor &left, const float *right, int64_t right_row, int64_t rows,
                  int64_t columns, int64_t depth, float *out, int64_t out_row) {
  int64_t c = 0;
  for (; c + 2 * kLanes <= columns; c += 2 * kLanes)
    head_rows<2>(left, right + c, right_row, rows, depth, out + c, out_row);
  if (c < columns) head_rows<1>(left, right + c, right_row, rows, depth, out + c, out_row);
}

// out (keys, queries) = rows rows_of_lanes^T: a lane for each of `length` rows of `lanes`.
void head_similarities(const float *rows, int64_t row, const float *lanes, int64_t lane,
                       int64_t length, int64_t depth, float *out, int64_t out_row) {
  alignas(64) float turned[SF_ATTENTION_DEPTH * 2 * kLanes];
  for (int64_t i = 0; i < length; i += 2 * kLanes) {
    const int64_t count = smaller(2 * kLanes, length - i);
    if (count > kLanes) {
      pack<2 * kLanes>(lanes + i * lane, lane, 1, count, depth, turned);
      head_rows<2>({rows, row, 1}, turned, 2 * kLanes, length, depth, out + i, out_row);
    } else {
      pack<kLanes>(lanes + i * lane, lane, 1, count, depth, turned);
      head_rows<1>({rows, row, 1}, turned, kLanes, length, depth, out + i, out_row);
    }
  }
}

// Similarities -> weights, down the keys of each lane; zeros where a query sees no key.
void head_softmax(float *weights, int64_t stride, int64_t length, float slope, const float *bias) {
  float top[kLanes], sum[kLanes];
  for (int64_t l = 0; l < kLanes; ++l) {
    top[l] = kOut;
    sum[l] = 0.0f;
  }
  for (int64_t j = 0; j < length; ++j) {
    float *const w = weights + j * stride;
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) {
      w[l] = slope * w[l] + (bias ? bias[j * stride + l] : 0.0f);
      top[l] = w[l] > top[l] ? w[l] : top[l];
    }
  }
  for (int64_t j = 0; j < length; ++j) {
    float *const w = weights + j * stride;
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) {
      w[l] = exp2_nonpositive(w[l] - top[l]);
      sum[l] += w[l];
    }
  }
  for (int64_t l = 0; l < kLanes; ++l) sum[l] = 1.0f / (sum[l] == 0.0f ? 1.0f : sum[l]);
  for (int64_t j = 0; j < length; ++j) {
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) weights[j * stride + l] *= sum[l];
  }
}

// Gradient of the weights -> scale * gradient of the logits, down the keys of each lane.
void head_softmax_backward(const float *weights, float *gradient, int64_t stride, int64_t length,
                           float scale) {
  float along[kLanes] = {};
  for (int64_t j = 0; j < length; ++j) {
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l)
      along[l] += weights[j * stride + l] * gradient[j * stride + l];
  }
  for (int64_t j = 0; j < length; ++j) {
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) {
      float &g = gradient[j * stride + l];
      g = scale * weights[j * stride + l] * (g - along[l]);
    }
  }
}

SF_INLINE float *head_of(const sf_heads &heads, int64_t batch, int64_t head) {
  return heads.at + batch * heads.batch + head * heads.head;
}

void attention(const sf_attention &p) {
  constexpr float kLog2E = 1.44269504088896341f;
  const int64_t stride = sf_attention_stride(p.length);
#pragma omp parallel for collapse(2) schedule(static) num_threads(p.threads)
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t h = 0; h < p.heads; ++h) {
      alignas(64) float room[kHeadRoom];
      float *const w = p.weights ? p.weights + (b * p.heads + h) * p.length * stride : room;
      head_similarities(head_of(p.key, b, h), p.key.row, head_of(p.query, b, h), p.query.row,
                        p.length, p.depth, w, stride);
      const float *const bias = p.bias ? p.bias + b * p.length * stride : nullptr;
      for (int64_t i = 0; i < p.length; i += kLanes)
        head_softmax(w + i, stride, p.length, kLog2E * p.scale, bias ? bias + i : nullptr);
      head_product({w, 1, stride}, head_of(p.value, b, h), p.value.row, p.length, p.depth, p.length,
                   head_of(p.out, b, h), p.out.row);
    }
  }
}

void attention_backward(const sf_attention &p) {
  const int64_t stride = sf_attention_stride(p.length);
#pragma omp parallel for collapse(2) schedule(static) num_threads(p.threads)
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t h = 0; h < p.heads; ++h) {
      alignas(64) float g[kHeadRoom];
      const float *const w = p.weights + (b * p.heads + h) * p.length * stride;
      const float *const upstream = head_of(p.out, b, h);
      head_product({w, stride, 1}, upstream, p.out.row, p.length, p.depth, p.length,
                   head_of(p.value_gradient, b, h), p.value_gradient.row);
      head_similarities(head_of(p.value, b, h), p.value.row, upstream, p.out.row, p.length, p.depth,
                        g, stride);
      for (int64_t i = 0; i < p.length; i += kLanes)
        head_softmax_backward(w + i, g + i, stride, p.length, p.scale);
      head_product({g, 1, stride}, head_of(p.key, b, h), p.key.row, p.length, p.depth, p.length,
                   head_of(p.query_gradient, b, h), p.query_gradient.row);
      head_product({g, stride, 1}, head_of(p.query, b, h), p.query.row, p.length, p.depth, p.length,
                   head_of(p.key_gradient, b, h), p.key_gradient.row);
    }
  }
}
