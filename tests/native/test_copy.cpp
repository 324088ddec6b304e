// Copies past the caches, byte by byte.

#include "checks.h"

#include <memory>

void check_copies() {
  for (int64_t bytes : {0, 1, 63, 64, 65, 1000, 300000, 300007}) {
    for (int32_t threads : {1, 2, 3}) {
      for (int64_t shift : {0, 1, 16}) {  // the source may begin anywhere
        std::vector<unsigned char> from(bytes + shift + 1), room(bytes + 128, 0xAB);
        for (auto &byte : from) byte = static_cast<unsigned char>(uniform(0, 255));
        void *at = room.data();
        size_t space = room.size();
        auto *to = static_cast<unsigned char *>(std::align(64, bytes, at, space));
        expect(sf_copy_past_caches(from.data() + shift, bytes, to, threads) == SF_OK,
               "sf_copy_past_caches succeeds");
        expect(std::equal(to, to + bytes, from.begin() + shift), "all bytes are there");
        const auto untouched = [](unsigned char byte) { return byte == 0xAB; };
        expect(std::all_of(room.data(), to, untouched), "nothing is written before");
        expect(std::all_of(to + bytes, room.data() + room.size(), untouched), "nor behind");
      }
    }
  }
}
