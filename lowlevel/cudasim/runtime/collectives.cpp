// Meetings of the lanes of a warp: shuffles, votes, __syncwarp, ldmatrix, mma.
#include <string.h>

#include "runner.h"

namespace cudasim {

namespace {

struct Group {  // the lanes of one mask
  uint32_t mask, arrived;
  Collective kind;
  Site site;
  Complete complete;
  int parity, n_waiting;
  Round rounds[2];  // alternate: a lane may still read the last round while others fill the next
  Fiber* waiting[kWarpSize];
};
constexpr int kGroups = 32;  // tiles of one thread
struct Warp {
  uint32_t live;  // lanes that exist and have not returned
  int n_groups;
  Group groups[kGroups];
};
Warp warps[kMaxThreads / kWarpSize];

Group& find_group(Warp& warp, uint32_t mask, Site site) {
  for (int i = 0; i < warp.n_groups; ++i)
    if (warp.groups[i].mask == mask) return warp.groups[i];
  Group* group = nullptr;
  if (warp.n_groups < kGroups) {
    group = &warp.groups[warp.n_groups++];
    group->parity = 0;
  } else {
    for (Group& candidate : warp.groups)
      if (!candidate.arrived) group = &candidate;
  }
  if (!group) fail(Fault::kBarrier, site, "more than %d masks wait within one warp", kGroups);
  group->mask = mask;
  group->arrived = 0;
  group->n_waiting = 0;
  return *group;
}

void release(int warp_index, Group& group) {
  ++progress;
  Round& round = group.rounds[group.parity];
  round.present = group.arrived;
  if (group.complete) group.complete(round);
  if (group.kind == Collective::kSync) race_sync_warp(warp_index, group.arrived);
  for (int i = 0; i < group.n_waiting; ++i) make_ready(group.waiting[i]);
  group.n_waiting = 0;
  group.arrived = 0;
  group.parity ^= 1;
}

bool needs_whole_warp(Collective kind) {
  return kind == Collective::kLoadMatrix || kind == Collective::kMma;
}

}  // namespace

Round& meet(uint32_t mask, Collective kind, Site site, const void* value, Complete complete) {
  const int warp_index = current_thread / kWarpSize, lane = lane_id();
  Warp& warp = warps[warp_index];
  if (!(mask >> lane & 1))
    fail(Fault::kBarrier, site, "lane %d calls a warp collective with mask %08x, which leaves it out", lane, mask);
  if (needs_whole_warp(kind) && warp.live != 0xffffffffu)
    fail(Fault::kBarrier, site, "ldmatrix and mma need all 32 lanes; running are %08x", warp.live);
  Group& group = find_group(warp, mask, site);
  if (!group.arrived) {
    group.kind = kind;
    group.site = site;
    group.complete = complete;
  } else if (group.kind != kind || group.site.line != site.line) {
    fail(Fault::kBarrier, site, "lanes of one warp meet in different collectives: lane %d here, others on line %d",
         lane, group.site.line);
  }
  Round& round = group.rounds[group.parity];
  memcpy(round.data[lane], value, 16);
  group.arrived |= 1u << lane;
  if (group.arrived == (mask & warp.live)) {
    release(warp_index, group);
  } else {
    group.waiting[group.n_waiting++] = current_fiber();
    block_current_thread(WaitKind::kCollective, site);
  }
  return round;
}

uint32_t active_mask() { return warps[current_thread / kWarpSize].live; }

void reset_collectives() {
  for (int first = 0; first < current.n_threads; first += kWarpSize) {
    Warp& warp = warps[first / kWarpSize];
    const int lanes = current.n_threads - first;
    warp.live = lanes >= kWarpSize ? 0xffffffffu : (1u << lanes) - 1;
    warp.n_groups = 0;
  }
}

// Lanes that have returned are not waited for, as on the device; mma and ldmatrix are the
// exception. A shuffle that reads such a lane fails in warp.h.
void collectives_thread_exited(int thread) {
  const int warp_index = thread / kWarpSize;
  Warp& warp = warps[warp_index];
  warp.live &= ~(1u << (thread % kWarpSize));
  for (int i = 0; i < warp.n_groups; ++i) {
    Group& group = warp.groups[i];
    if (!group.arrived) continue;
    if (needs_whole_warp(group.kind))
      fail(Fault::kBarrier, group.site, "ldmatrix and mma need all 32 lanes; lane %d has returned",
           thread % kWarpSize);
    if (group.arrived == (group.mask & warp.live)) release(warp_index, group);
  }
}

}  // namespace cudasim
