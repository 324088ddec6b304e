// The loops of the CPU loss between its products. Included once per instruction set (see
// instruction_sets.cpp).

constexpr float kLn2 = 0.693147180559945309f;
constexpr float kInfinity = __builtin_inff();
constexpr float kOut = -1e30f;  // a similarity left out; finite, so that 0 * kOut is no NaN

// 2^x for x <= 0 (or slightly above); 0 below 2^-126; NaN stays NaN. The polynomial is the minimax
// one of degree 6 with constant term 1: relative error 2.6e-9 before rounding.
SF_INLINE float exp2_nonpositive(float x) {
  const float clamped = x < -126.0f ? -126.0f : x;
  const float shifted = clamped + 12582912.0f;  // 1.5 * 2^23: the integer part lands in low bits
  const float r = clamped - (shifted - 12582912.0f);  // [-1/2, 1/2]
  float p = 1.55946782e-4f;
  p = p * r + 1.34066439e-3f;
  p = p * r + 9.61769297e-3f;
  p = p * r + 5.55031055e-2f;
  p = p * r + 2.40226528e-1f;
  p = p * r + 6.93147215e-1f;
  p = p * r + 1.0f;
  int32_t bits;
  __builtin_memcpy(&bits, &shifted, 4);
  bits = static_cast<int32_t>((static_cast<uint32_t>(bits) << 23) + 0x3f800000u);
  float power;
  __builtin_memcpy(&power, &bits, 4);
  return x < -126.0f ? 0.0f : p * power;
}

// A slope in two floats, and the distance of a logit from an offset: the product is exact up to the
// second float, because the first fused multiply-add cancels before it rounds.
struct Slope {
  float high, low;
  explicit Slope(double slope)
      : high(static_cast<float>(slope)), low(static_cast<float>(slope - high)) {}
};

SF_INLINE float distance(const Slope &slope, float similarity, float offset) {
  return SF_FMA(slope.low, similarity, SF_FMA(slope.high, similarity, -offset));
}

// What leaves a column out of a row's denominator.
enum Filter { kNone, kMargin, kIdsAndMargin };

struct Leave {
  float threshold;         // similarities above it are left out
  int64_t id;              // columns with this id are left out
  const int64_t *key_ids;  // of the columns at hand
};

template <Filter F>
SF_INLINE float remaining(float similarity, int64_t j, const Leave &leave) {
  if (F == kNone) return similarity;
  bool out = similarity > leave.threshold;
  if (F == kIdsAndMargin) out = out | (leave.key_ids[j] == leave.id);
  return out ? kOut : similarity;
}

template <Filter F>
SF_INLINE float largest(const float *similarity, int64_t n, const Leave &leave) {
  float top = -kInfinity;
#pragma omp simd reduction(max : top)
  for (int64_t j = 0; j < n; ++j) {
    const float s = remaining<F>(similarity[j], j, leave);
    top = s > top ? s : top;
  }
  return top;
}

struct Sums {
  double exponentials = 0.0;
  double logits = 0.0;  // only with label smoothing
  int64_t count = 0;    // only with label smoothing
};

// Adds a piece of a row to its sums; with Store the exponentials replace the similarities, and
// with Smooth a column left out becomes -1 so that `weigh` can tell it from one that underflowed.
template <Filter F, bool Smooth, bool Store>
SF_INLINE void accumulate(float *similarity, int64_t n, const Slope &slope, float offset,
                          const Leave &leave, Sums &sums) {
  constexpr int64_t kChunk = 4096;  // float sums stay short, the long sum is in double
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int64_t end = begin + kChunk < n ? begin + kChunk : n;
    float total = 0.0f, logits = 0.0f;
    int32_t count = 0;
#pragma omp simd reduction(+ : total, logits, count)
    for (int64_t j = begin; j < end; ++j) {
      const float s = remaining<F>(similarity[j], j, leave);
      const float e = exp2_nonpositive(distance(slope, s, offset));
      total += e;
      if (Smooth) {
        const bool in = !(s == kOut);
        logits += in ? slope.high * s : 0.0f;
        count += in ? 1 : 0;
        if (Store) similarity[j] = in ? e : -1.0f;
      } else if (Store) {
        similarity[j] = e;
      }
    }
    sums.exponentials += total;
    sums.logits += logits;
    sums.count += count;
  }
}

template <bool Smooth>
SF_INLINE void weigh(float *exponential, int64_t n, float factor, float shift) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const float e = exponential[j];
    exponential[j] = Smooth ? (e < 0.0f ? 0.0f : factor * e - shift) : factor * e;
  }
}

// The end of a softmax: sums of the negatives and the positive's logit -> loss and its gradient.
struct End {
  float loss, inverse_sum, miss, smoothing;
};

// `behind` is how far the positive's logit lies below the offset, <= 0.
SF_INLINE End finish(const Sums &negatives, float behind, float offset, float epsilon) {
  const double e = __builtin_exp2(static_cast<double>(behind));
  const double sum = e + negatives.exponentials;
  End end;
  // Two forms: the first keeps the digits of a converged loss, the second cannot overflow.
  end.loss = static_cast<float>(negatives.exponentials <= e
                                    ? __builtin_log1p(negatives.exponentials / e)
                                    : __builtin_log(sum) -
                                          0.693147180559945309 * static_cast<double>(behind));
  end.inverse_sum = static_cast<float>(1.0 / sum);
  end.miss = static_cast<float>(negatives.exponentials / sum);
  end.smoothing = 0.0f;
  if (epsilon > 0.0f) {
    const double count = static_cast<double>(negatives.count + 1);
    const double positive = static_cast<double>(offset) + behind;
    end.smoothing = static_cast<float>(epsilon / count);
    end.loss +=
        epsilon * kLn2 * static_cast<float>(positive - (negatives.logits + positive) / count);
  }
  return end;
}

template <Filter F, bool Smooth>
SF_INLINE void row(const sf_rows &p, int64_t i) {
  float *s = p.similarity + i * p.stride;
  float *hard = p.hard ? p.hard + i * p.hard_count : nullptr;
  const int64_t own = p.labels[i];
  const float positive = s[p.segments[0].begin + own];
  const Slope positive_slope(p.segments[0].own_slope);
  const auto leave_at = [&](int64_t begin) {
    return Leave{positive + p.margin, p.query_ids ? p.query_ids[i] : 0,
                 p.key_ids ? p.key_ids + begin : nullptr};
  };

  float offset = positive_slope.high * positive;
  const auto raise = [&](float logit) { offset = logit > offset ? logit : offset; };
  // The row's own columns have logits of their own. They are marked as left out while a vector loop
  // runs over the segment, which is quicker than a loop on each side of them.
  for (int64_t k = 0; k < p.segment_count; ++k) {
    const sf_segment &segment = p.segments[k];
    float *columns = s + segment.begin, own_similarity = columns[own];
    columns[own] = kOut;
    raise(static_cast<float>(segment.slope) *
          largest<F>(columns, segment.width, leave_at(segment.begin)));
    columns[own] = own_similarity;
    if (segment.own == SF_OWN_KEPT) raise(static_cast<float>(segment.own_slope) * own_similarity);
  }
  const auto hard_logit = [&](float similarity) {
    return static_cast<float>(p.hard_slope * similarity + p.hard_shift);
  };
  for (int64_t k = 0; k < p.hard_count; ++k) raise(hard_logit(hard[k]));

  Sums sums;
  const auto add_one = [&](double logit) {  // few, so in double
    const float e = exp2_nonpositive(static_cast<float>(logit - offset));
    sums.exponentials += e;
    sums.logits += logit;
    ++sums.count;
    return e;
  };
  for (int64_t k = 0; k < p.segment_count; ++k) {
    const sf_segment &segment = p.segments[k];
    const Slope slope(segment.slope);
    const Leave leave = leave_at(segment.begin);
    float *columns = s + segment.begin, own_value = columns[own];
    columns[own] = kOut;
    if (p.write_gradient) {
      accumulate<F, Smooth, true>(columns, segment.width, slope, offset, leave, sums);
    } else {
      accumulate<F, Smooth, false>(columns, segment.width, slope, offset, leave, sums);
    }
    if (segment.own == SF_OWN_KEPT) {
      const float e = add_one(segment.own_slope * own_value);
      if (p.write_gradient) own_value = e;
    }
    columns[own] = own_value;
  }
  for (int64_t k = 0; k < p.hard_count; ++k) {
    const float e = add_one(p.hard_slope * hard[k] + p.hard_shift);
    if (p.write_hard_gradient) hard[k] = e;
  }

  const float behind = distance(positive_slope, positive, offset);
  const End end = finish(sums, behind, offset, p.label_smoothing);
  p.softmax.loss[i] = end.loss;
  if (p.softmax.offset) p.softmax.offset[i] = offset;
  if (p.softmax.inverse_sum) p.softmax.inverse_sum[i] = end.inverse_sum;
  if (p.softmax.miss) p.softmax.miss[i] = end.miss;
  if (p.softmax.smoothing) p.softmax.smoothing[i] = end.smoothing;

  const float weight = p.weight ? p.weight[i] : p.uniform_weight;
  const float factor = weight * end.inverse_sum;
  const float shift = weight * end.smoothing;
  if (p.write_hard_gradient) weigh<Smooth>(hard, p.hard_count, factor, shift);
  if (!p.write_gradient) return;
  for (int64_t k = 0; k < p.segment_count; ++k) {
    const sf_segment &segment = p.segments[k];
    float *at = s + segment.begin + own;
    const float own_value = *at;
    weigh<Smooth>(s + segment.begin, segment.width, factor, shift);
    if (segment.own == SF_OWN_POSITIVE) {
      *at = weight * (p.label_smoothing - end.smoothing - end.miss);
    } else if (segment.own == SF_OWN_KEPT) {
      *at = factor * own_value - shift;
    } else {
      *at = 0.0f;
    }
  }
}

template <Filter F, bool Smooth>
void rows_of(const sf_rows &p) {
  const int64_t columns =
      p.segments[p.segment_count - 1].begin + p.segments[p.segment_count - 1].width;
#pragma omp parallel for schedule(static) num_threads(p.threads) if (p.rows * columns > kParallel)
  for (int64_t i = 0; i < p.rows; ++i) row<F, Smooth>(p, i);
}

// Columns are taken in strips that stay in the first-level cache while a block of rows goes by.
constexpr int64_t kStrip = 256, kBlock = 16;

template <Filter F, bool Smooth>
SF_INLINE void strip_of_columns(const sf_square &p, int64_t first, int64_t n) {
  const Slope slope(p.slope);
  float offset[kStrip], top[kStrip], sum[kStrip], logits[kStrip];
  int32_t count[kStrip];
  const int64_t *key_ids = p.key_ids ? p.key_ids + first : nullptr;
  const auto value = [&](const float *s, int64_t i, int64_t j) {
    if (F == kNone) return s[j];
    bool out = s[j] > p.positive[first + j] + p.margin;
    if (F == kIdsAndMargin) out = out | (key_ids[j] == p.query_ids[p.first_row + i]);
    return out ? kOut : s[j];
  };
  if (p.first_row == 0) {
    for (int64_t j = first; j < first + n; ++j) {
      p.column.offset[j] = static_cast<float>(p.positive_slope) * p.positive[j];
      p.column_sum[j] = p.logit_sum[j] = 0.0;
      p.column_count[j] = 0;
    }
  }
  for (int64_t j = 0; j < n; ++j) offset[j] = p.column.offset[first + j];
  for (int64_t begin = 0; begin < p.rows; begin += kBlock) {
    const int64_t end = begin + kBlock < p.rows ? begin + kBlock : p.rows;
    for (int64_t j = 0; j < n; ++j) {
      top[j] = offset[j];
      sum[j] = logits[j] = 0.0f;
      count[j] = 0;
    }
    for (int64_t i = begin; i < end; ++i) {
      const float *s = p.similarity + i * p.stride + first;
      const int64_t own = p.first_row + i - first;  // the positive's column, if in this strip
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) {
        const float logit = j == own ? kOut : slope.high * value(s, i, j);
        top[j] = logit > top[j] ? logit : top[j];
      }
    }
    for (int64_t j = 0; j < n; ++j) {
      // Exactly 1 where the offset stays, also for infinities.
      if (top[j] > offset[j]) {
        p.column_sum[first + j] *= __builtin_exp2(static_cast<double>(offset[j]) - top[j]);
        offset[j] = top[j];
      }
    }
    for (int64_t i = begin; i < end; ++i) {
      const float *s = p.similarity + i * p.stride + first;
      const int64_t own = p.first_row + i - first;
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) {
        const float v = j == own ? kOut : value(s, i, j);
        sum[j] += exp2_nonpositive(distance(slope, v, offset[j]));
        if (Smooth) {
          const bool in = !(v == kOut);
          logits[j] += in ? slope.high * v : 0.0f;
          count[j] += in ? 1 : 0;
        }
      }
    }
    for (int64_t j = 0; j < n; ++j) p.column_sum[first + j] += sum[j];
    if (Smooth) {
      for (int64_t j = 0; j < n; ++j) {
        p.logit_sum[first + j] += logits[j];
        p.column_count[first + j] += count[j];
      }
    }
  }
  for (int64_t j = 0; j < n; ++j) p.column.offset[first + j] = offset[j];
}

// Some columns of a square, for one thread.
struct ColumnRange : sf_square {
  int64_t first, count;
};

template <Filter F, bool Smooth>
struct Strip {
  static void run(const ColumnRange &p) { strip_of_columns<F, Smooth>(p, p.first, p.count); }
};

template <Filter F, bool Smooth>
void columns_of(const sf_square &p) {
#pragma omp parallel for schedule(static) num_threads(p.threads) if (p.rows * p.columns > kParallel)
  for (int64_t first = 0; first < p.columns; first += kStrip) {
    const int64_t n = first + kStrip < p.columns ? kStrip : p.columns - first;
    strip_of_columns<F, Smooth>(p, first, n);
  }
}

SF_INLINE void end_of_column(const sf_square &p, int64_t j) {
  Sums sums;
  sums.exponentials = p.column_sum[j];
  sums.logits = p.logit_sum[j];
  sums.count = p.column_count[j];
  const float offset = p.column.offset[j];
  const float behind = distance(Slope(p.positive_slope), p.positive[j], offset);
  const End end = finish(sums, behind, offset, p.label_smoothing);
  p.column.loss[j] = end.loss;
  p.column.inverse_sum[j] = end.inverse_sum;
  p.column.miss[j] = end.miss;
  p.column.smoothing[j] = end.smoothing;
}

template <Filter F, bool Smooth, bool Weighted>
SF_INLINE void square_row(const sf_square &p, int64_t i) {
  // Everything by value or by its own pointer, or the loop would read the struct for each element.
  const int64_t own = p.first_row + i, columns = p.columns;
  const Slope slope(p.slope);
  const sf_softmax row = p.row, column = p.column;
  const float row_offset = row.offset[own], row_inverse = row.inverse_sum[own];
  const float row_smoothing = row.smoothing[own];
  const float margin = p.margin, row_threshold = p.positive[own] + margin;
  const float uniform_weight = p.uniform_weight;
  const float row_weight = Weighted ? p.weight[own] : uniform_weight;
  const float *weight = p.weight, *positive = p.positive;
  const int64_t *key_ids = p.key_ids, id = p.query_ids ? p.query_ids[own] : 0;
  float *s = p.similarity + i * p.stride;
#pragma omp simd
  for (int64_t j = 0; j < columns; ++j) {
    const float similarity = s[j];
    float by_row = exp2_nonpositive(distance(slope, similarity, row_offset)) * row_inverse;
    float by_column =
        exp2_nonpositive(distance(slope, similarity, column.offset[j])) * column.inverse_sum[j];
    if (Smooth) {
      by_row -= row_smoothing;
      by_column -= column.smoothing[j];
    }
    if (F != kNone) {
      const bool same = F == kIdsAndMargin ? key_ids[j] == id : false;
      by_row = (similarity > row_threshold) | same ? 0.0f : by_row;
      by_column = (similarity > positive[j] + margin) | same ? 0.0f : by_column;
    }
    s[j] = row_weight * by_row + (Weighted ? weight[j] : uniform_weight) * by_column;
  }
  s[own] = row_weight * (2.0f * p.label_smoothing - row_smoothing - column.smoothing[own] -
                         row.miss[own] - column.miss[own]);
}

template <Filter F, bool Smooth>
void square_of(const sf_square &p) {
#pragma omp parallel for schedule(static) num_threads(p.threads) if (p.rows * p.columns > kParallel)
  for (int64_t i = 0; i < p.rows; ++i) {
    if (p.weight) {
      square_row<F, Smooth, true>(p, i);
    } else {
      square_row<F, Smooth, false>(p, i);
    }
  }
}

template <template <Filter, bool> class Call, typename Panel>
void choose(const Panel &p) {
  const Filter filter = p.key_ids && p.query_ids ? kIdsAndMargin
                        : p.margin < kInfinity   ? kMargin
                                                 : kNone;
  const bool smooth = p.label_smoothing > 0.0f;
  if (filter == kNone) {
    smooth ? Call<kNone, true>::run(p) : Call<kNone, false>::run(p);
  } else if (filter == kMargin) {
    smooth ? Call<kMargin, true>::run(p) : Call<kMargin, false>::run(p);
  } else {
    smooth ? Call<kIdsAndMargin, true>::run(p) : Call<kIdsAndMargin, false>::run(p);
  }
}

template <Filter F, bool Smooth>
struct Rows {
  static void run(const sf_rows &p) { rows_of<F, Smooth>(p); }
};
template <Filter F, bool Smooth>
struct Columns {
  static void run(const sf_square &p) { columns_of<F, Smooth>(p); }
};
template <Filter F, bool Smooth>
struct Square {
  static void run(const sf_square &p) { square_of<F, Smooth>(p); }
};

void rows(const sf_rows &p) { choose<Rows>(p); }
void columns(const sf_square &p) { choose<Columns>(p); }
void columns_end(const sf_square &p) {
  for (int64_t j = 0; j < p.columns; ++j) end_of_column(p, j);
}
void square(const sf_square &p) { choose<Square>(p); }
