// Every function of the C interface, on every instruction set of this processor, against plain
// loops in double precision. Under AddressSanitizer (`make sanitize`) reads are watched as well.

#include "checks.h"

namespace {

void check_refusals() {
  float x = 1;
  expect(sf_normalize(nullptr, 1, 1, &x, &x, 1) == SF_BAD_ARGUMENT, "no x is refused");
  expect(sf_normalize(&x, -1, 1, &x, &x, 1) == SF_BAD_ARGUMENT, "negative rows are refused");
  expect(sf_normalize(&x, 1, 1, &x, &x, 0) == SF_BAD_ARGUMENT, "no threads are refused");
  expect(sf_normalize_backward(&x, &x, nullptr, 1, 1, 1, &x, &x, 1) == SF_BAD_ARGUMENT, "no g");
  expect(sf_infonce_rows(nullptr) == SF_BAD_ARGUMENT, "no panel is refused");
  sf_rows rows{};
  expect(sf_infonce_rows(&rows) == SF_BAD_ARGUMENT, "an empty panel is refused");
  sf_square square{};
  expect(sf_infonce_columns(&square) == SF_BAD_ARGUMENT, "an empty square is refused");
  expect(sf_infonce_columns_end(&square) == SF_BAD_ARGUMENT, "an empty square is refused");
  expect(sf_infonce_square(&square) == SF_BAD_ARGUMENT, "an empty square is refused");
  expect(sf_copy_past_caches(&x, 4, &x, 0) == SF_BAD_ARGUMENT, "no threads are refused");
  alignas(64) char lines[128];
  expect(sf_copy_past_caches(lines, 8, lines + 72, 1) == SF_BAD_ARGUMENT, "not a multiple of 64");
  expect(sf_use_instruction_set("mmx") == SF_BAD_ARGUMENT, "an unknown name is refused");
}

}  // namespace

int main() {
  context = "interface";
  expect(sf_abi_version() == SF_ABI_VERSION, "version of header and library", sf_abi_version(),
         SF_ABI_VERSION);
  const std::string best = sf_instruction_set();
  for (const char *name : {"amx", "avx512", "avx2", "baseline"}) {
    if (sf_use_instruction_set(name) != SF_OK) {
      expect(best != name, "the instruction set in use can be named");
      std::printf("%s: not on this processor\n", name);
      continue;
    }
    context = name;
    expect(std::strcmp(sf_instruction_set(), name) == 0, "the set that was asked for is used");
    check_refusals();
    check_copies();
    check_normalizations();
    check_all_rows();
    check_all_products();
    check_all_small();
    check_all_squares();
    check_all_attention();
    check_all_uniformity();
    std::printf("%s: done\n", name);
  }
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
}
