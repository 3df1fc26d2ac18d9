// Shuffles, votes, matches and reductions of a warp. Each is one meeting of the lanes in `mask`.
#pragma once
#include <string.h>

#include <cudasim/runtime.h>
#include <cudasim/synchronise.h>

namespace cudasim {

template <class T>
inline Round& publish(uint32_t mask, Collective kind, Site site, const T& value,
                      Complete complete = nullptr) {
  static_assert(sizeof(T) <= 16, "a lane publishes at most 16 bytes");
  alignas(16) unsigned char bytes[16] = {};
  memcpy(bytes, &value, sizeof(T));
  return meet(mask, kind, site, bytes, complete);
}

template <class T>
inline T published(const Round& round, int lane) {
  T value;
  memcpy(&value, round.data[lane], sizeof(T));
  return value;
}

// `source`: the lane to read from; the own lane where CUDA says "the value stays".
template <class T>
inline T shuffle(uint32_t mask, T value, int source, Site site) {
  const Round& round = publish(mask, Collective::kShuffle, site, value);
  if (source == lane_id()) return value;
  if (!(round.present >> source & 1))
    fail(Fault::kBarrier, site, "shuffle reads lane %d, which does not take part (mask %08x)",
         source, mask);
  return published<T>(round, source);
}

template <class T, class Combine>
inline T reduce(uint32_t mask, T value, Site site, Combine combine) {
  const Round& round = publish(mask, Collective::kReduce, site, value);
  T total = value;
  for (int lane = 0; lane < kWarpSize; ++lane)
    if ((round.present >> lane & 1) && lane != lane_id())
      total = combine(total, published<T>(round, lane));
  return total;
}

}  // namespace cudasim

inline void __syncwarp(unsigned mask = 0xffffffffu, CUDASIM_SITE) {
  cudasim::publish(mask, cudasim::Collective::kSync, site, 0);
}
inline unsigned __activemask() { return cudasim::active_mask(); }

template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, CUDASIM_SITE) {
  const int lane = cudasim::lane_id();
  return cudasim::shuffle(mask, value, (lane & ~(width - 1)) | (source & (width - 1)), site);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, CUDASIM_SITE) {
  const int lane = cudasim::lane_id(), source = lane ^ lane_mask;
  const bool inside = source < (lane & ~(width - 1)) + width;
  return cudasim::shuffle(mask, value, inside ? source : lane, site);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDASIM_SITE) {
  const int lane = cudasim::lane_id();
  const bool inside = (lane & (width - 1)) + (int)delta < width;
  return cudasim::shuffle(mask, value, inside ? lane + (int)delta : lane, site);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDASIM_SITE) {
  const int lane = cudasim::lane_id();
  const bool inside = (lane & (width - 1)) >= (int)delta;
  return cudasim::shuffle(mask, value, inside ? lane - (int)delta : lane, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, CUDASIM_SITE) {
  auto complete = [](cudasim::Round& round) {
    round.result = 0;
    for (int lane = 0; lane < cudasim::kWarpSize; ++lane)
      if (round.present >> lane & 1) round.result |= (uint32_t)(round.data[lane][0] != 0) << lane;
  };
  return cudasim::publish(mask, cudasim::Collective::kVote, site, predicate != 0, complete).result;
}
inline int __any_sync(unsigned mask, int predicate, CUDASIM_SITE) {
  return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDASIM_SITE) {
  return __ballot_sync(mask, !predicate, site) == 0;
}
inline int __uni_sync(unsigned mask, int predicate, CUDASIM_SITE) {
  const unsigned votes = __ballot_sync(mask, predicate, site);
  return votes == 0 || votes == (mask & cudasim::active_mask());
}

template <class T>
inline unsigned __match_any_sync(unsigned mask, T value, CUDASIM_SITE) {
  const cudasim::Round& round = cudasim::publish(mask, cudasim::Collective::kMatch, site, value);
  unsigned same = 0;
  for (int lane = 0; lane < cudasim::kWarpSize; ++lane)
    if (round.present >> lane & 1)
      same |= (unsigned)(memcmp(round.data[lane], &value, sizeof(T)) == 0) << lane;
  return same;
}
template <class T>
inline unsigned __match_all_sync(unsigned mask, T value, int* all_equal, CUDASIM_SITE) {
  const cudasim::Round& round = cudasim::publish(mask, cudasim::Collective::kMatch, site, value);
  *all_equal = 1;
  for (int lane = 0; lane < cudasim::kWarpSize; ++lane)
    if ((round.present >> lane & 1) && memcmp(round.data[lane], &value, sizeof(T)) != 0)
      *all_equal = 0;
  return *all_equal ? round.present : 0;
}

#define CUDASIM_WARP_REDUCE(T)                                                                  \
  inline T __reduce_add_sync(unsigned mask, T value, CUDASIM_SITE) {                            \
    return cudasim::reduce(mask, value, site, [](T a, T b) { return (T)(a + b); });             \
  }                                                                                             \
  inline T __reduce_min_sync(unsigned mask, T value, CUDASIM_SITE) {                            \
    return cudasim::reduce(mask, value, site, [](T a, T b) { return a < b ? a : b; });          \
  }                                                                                             \
  inline T __reduce_max_sync(unsigned mask, T value, CUDASIM_SITE) {                            \
    return cudasim::reduce(mask, value, site, [](T a, T b) { return a > b ? a : b; });          \
  }
CUDASIM_WARP_REDUCE(int)
CUDASIM_WARP_REDUCE(unsigned)

inline unsigned __reduce_and_sync(unsigned mask, unsigned value, CUDASIM_SITE) {
  return cudasim::reduce(mask, value, site, [](unsigned a, unsigned b) { return a & b; });
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, CUDASIM_SITE) {
  return cudasim::reduce(mask, value, site, [](unsigned a, unsigned b) { return a | b; });
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned value, CUDASIM_SITE) {
  return cudasim::reduce(mask, value, site, [](unsigned a, unsigned b) { return a ^ b; });
}
