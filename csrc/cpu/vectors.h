// Vectors of an instruction set's width, and lines of a matrix turned into them. Included once per
// instruction set (see instruction_sets.cpp).

constexpr int64_t kLanes = SF_LANES;
typedef float Vector __attribute__((vector_size(4 * SF_LANES), aligned(4)));  // wherever it stands
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
