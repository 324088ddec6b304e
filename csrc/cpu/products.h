// Matrix products, packed as a BLAS packs them: both factors are copied into the order in which a
// tile of the result reads them, so that all strides run at one speed. Included once per
// instruction set (see infonce.cpp), with vectors of its width.

constexpr int64_t kLanes = SF_LANES;
// Of a tile: its sums fill 28 of 32 registers, or 12 of 16.
constexpr int64_t kHigh = SF_LANES == 16 ? 14 : 6, kWide = 2 * kLanes;
constexpr int64_t kDeep = 384;          // numbers that a sum takes in before it is written
constexpr int64_t kBlockRows = 168;     // packed kDeep deep, a quarter of the second cache
constexpr int64_t kGroupColumns = 512;  // of that many rows of the result, another third
constexpr int64_t kSlab = 1 << 22;      // numbers of the right factor that are packed at a time

typedef float Vector __attribute__((vector_size(4 * SF_LANES), aligned(4)));  // wherever it stands

SF_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
SF_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
SF_INLINE int64_t pieces(int64_t size, int64_t piece) { return (size + piece - 1) / piece; }

// Pieces of equal size, a multiple of `step`, as many as there are pieces of `piece`.
SF_INLINE int64_t even(int64_t size, int64_t piece, int64_t step) {
  return pieces(pieces(size, pieces(size, piece)), step) * step;
}

// How a product is cut up: a slab of the right factor is packed by all threads, then the threads
// take pieces of block rows by group columns.
struct Cut {
  int64_t columns, depth;  // of a slab
  int64_t block, group;

  explicit Cut(const sf_product &p) {
    const int64_t wide = pieces(p.columns, kWide) * kWide;
    if (p.depth <= kSlab / kGroupColumns / 2) {
      depth = p.depth;
      columns = smaller(wide, kSlab / depth / kWide * kWide);
    } else {
      columns = smaller(wide, 2 * kGroupColumns);
      depth = smaller(p.depth, kSlab / columns / kDeep * kDeep);
    }
    block = kBlockRows;
    group = kGroupColumns;
    while (pieces(p.rows, block) * pieces(columns, group) < p.threads &&
           (block > kHigh || group > kWide)) {
      if (group > kWide && (group >= block || block == kHigh)) {
        group /= 2;
      } else {
        block = pieces(block / 2, kHigh) * kHigh;
      }
    }
    block = even(p.rows, block, kHigh);
    group = even(columns, group, kWide);
  }
  int64_t slab() const { return columns * depth; }
  int64_t packed_block() const { return block * smaller(kDeep, depth); }
};

// out (kHigh, kWide) = or += left (depth, kHigh)^T right (depth, kWide), both packed.
SF_INLINE void tile(const float *left, const float *right, int64_t depth, float *out,
                    int64_t stride, bool add) {
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

// The same for a tile of which only rows by columns exist.
SF_INLINE void edge(const float *left, const float *right, int64_t depth, float *out,
                    int64_t stride, bool add, int64_t rows, int64_t columns) {
  float whole[kHigh * kWide];
  tile(left, right, depth, whole, kWide, false);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c)
      out[r * stride + c] = whole[r * kWide + c] + (add ? out[r * stride + c] : 0.0f);
}

typedef float Four __attribute__((vector_size(16), aligned(4)));

// out[j * W + i] = from[i * line + j], i and j below 4.
template <int64_t W>
SF_INLINE void turn(const float *from, int64_t line, float *out) {
  Four row[4], half[4];
  for (int i = 0; i < 4; ++i) row[i] = *reinterpret_cast<const Four *>(from + i * line);
  for (int i = 0; i < 2; ++i) {
    half[i] = SF_SHUFFLE(row[2 * i], row[2 * i + 1], 0, 4, 1, 5);
    half[i + 2] = SF_SHUFFLE(row[2 * i], row[2 * i + 1], 2, 6, 3, 7);
  }
  for (int j = 0; j < 4; j += 2) {
    *reinterpret_cast<Four *>(out + j * W) = SF_SHUFFLE(half[j], half[j + 1], 0, 1, 4, 5);
    *reinterpret_cast<Four *>(out + (j + 1) * W) = SF_SHUFFLE(half[j], half[j + 1], 2, 3, 6, 7);
  }
}

// Lines (count <= W) of `depth` numbers -> out (depth, W); lines that do not exist are zero.
template <int64_t W>
SF_INLINE void pack(const float *from, int64_t line, int64_t along, int64_t count, int64_t depth,
                    float *out) {
  if (count == W && line == 1) {
    for (int64_t k = 0; k < depth; ++k) __builtin_memcpy(out + k * W, from + k * along, 4 * W);
    return;
  }
  const int64_t fours = along == 1 ? count & ~3 : 0, deep = depth & ~3;
  for (int64_t k = 0; k < deep; k += 4)
    for (int64_t i = 0; i < fours; i += 4) turn<W>(from + i * line + k, line, out + k * W + i);
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t i = k < deep ? fours : 0; i < count; ++i)
      out[k * W + i] = from[i * line + k * along];
    for (int64_t i = count; i < W; ++i) out[k * W + i] = 0.0f;
  }
}

// A piece of the product: rows [i, i + high) and columns [j, j + wide) of a packed slab.
SF_INLINE void piece_of(const sf_product &p, const Cut &cut, int64_t i, int64_t high, int64_t j,
                        int64_t wide, int64_t first, int64_t depth, const float *slab, float *left,
                        float *out) {
  for (int64_t k = 0; k < depth; k += kDeep) {
    const int64_t deep = smaller(kDeep, depth - k);
    const bool add = p.accumulate || first + k > 0;
    for (int64_t r = 0; r < high; r += kHigh)
      pack<kHigh>(p.left + (i + r) * p.left_row + (first + k) * p.left_column, p.left_row,
                  p.left_column, smaller(kHigh, high - r), deep, left + r * deep);
    for (int64_t c = 0; c < wide; c += kWide) {
      const float *right = slab + k * cut.columns + (j + c) * deep;
      for (int64_t r = 0; r < high; r += kHigh) {
        float *to = out + (i + r) * p.out_row + j + c;
        if (high - r >= kHigh && wide - c >= kWide)
          tile(left + r * deep, right, deep, to, p.out_row, add);
        else
          edge(left + r * deep, right, deep, to, p.out_row, add, smaller(kHigh, high - r),
               smaller(kWide, wide - c));
      }
    }
  }
}

int64_t product_scratch(const sf_product &p) {
  const Cut cut(p);
  return cut.slab() + p.threads * cut.packed_block();
}

// To be called by every thread of a team, of at most p.threads.
SF_INLINE void multiply_together(const sf_product &p) {
  const Cut cut(p);
  float *const left = p.scratch + cut.slab() + omp_get_thread_num() * cut.packed_block();
  for (int64_t first = 0; first < p.depth; first += cut.depth) {
    const int64_t depth = smaller(cut.depth, p.depth - first);
    for (int64_t begin = 0; begin < p.columns; begin += cut.columns) {
      const int64_t columns = smaller(cut.columns, p.columns - begin);
#pragma omp for collapse(2) schedule(static)
      for (int64_t k = 0; k < depth; k += kDeep) {
        for (int64_t j = 0; j < columns; j += kWide) {
          const int64_t deep = smaller(kDeep, depth - k);
          pack<kWide>(p.right + (begin + j) * p.right_column + (first + k) * p.right_row,
                      p.right_column, p.right_row, smaller(kWide, columns - j), deep,
                      p.scratch + k * cut.columns + j * deep);
        }
      }
#pragma omp for collapse(2) schedule(dynamic)
      for (int64_t i = 0; i < p.rows; i += cut.block) {
        for (int64_t j = 0; j < columns; j += cut.group) {
          piece_of(p, cut, i, smaller(cut.block, p.rows - i), j, smaller(cut.group, columns - j),
                   first, depth, p.scratch, left, p.out + begin);
        }
      }
    }
  }
}

void multiply(const sf_product &p) {
#pragma omp parallel num_threads(p.threads)
  multiply_together(p);
}
