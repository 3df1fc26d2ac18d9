// wgmma: products of a warpgroup (four warps), as the PTX ISA lays out descriptors, swizzles and fragments.
//
// A thread that issues a product goes on at once. The product is computed when the last of the 128 threads
// has issued it; what it read is kept. A wait gives a thread its part of the results, after making sure
// that nobody has changed operands meanwhile: the device may read them at any time before.
#include <string.h>

#include <vector>

#include "runner.h"
#include "small_float_values.h"

namespace cudasim {

namespace {

constexpr int kThreads = 128, kRows = 64, kDepth = 16, kMostColumns = 256;
constexpr int kProducts = 128;     // of a warpgroup, at once under way
constexpr int kAccumulators = 8;  // likewise
constexpr int kChunk = 16;         // bytes

struct Chunk {
  const unsigned char* address;
  unsigned char bytes[kChunk];
};
struct Product {
  WarpgroupProduct issued;  // by the first thread; pointers are not used
  Site site;
  const void* pc;
  uint64_t number, accumulators;
  int n_issued, n_finished;
  const uint32_t* a[kThreads];
  uint32_t a_values[kThreads][4];
  std::vector<Chunk> read;
};
struct Accumulators {
  uint64_t serial;  // plus 1; 0: nobody's
  int n_holding;
  float values[kRows][kMostColumns];
};
struct Warpgroup {
  uint64_t n_computed;
  Product products[kProducts];
  Accumulators accumulators[kAccumulators];
  std::vector<Fiber*> waiting;
};
Warpgroup warpgroups[kMaxThreads / kThreads];

struct InFlight {
  float* d;
  int columns;
  uint64_t accumulators, last_product;
};
struct Thread {
  uint64_t n_issued, n_finished, n_accumulators;
  std::vector<uint64_t> groups;  // products issued when each was committed
  std::vector<InFlight> in_flight;
  bool fenced;
};
Thread threads[kMaxThreads];

// Who wrote each 16 bytes of shared memory last without a fence since: thread + 1.
uint16_t unfenced[kSharedWindow / kChunk];
int n_unfenced[kMaxThreads];
bool any_unfenced;

// ---- descriptors ----------------------------------------------------------------------------------------

struct Matrix {
  unsigned start, leading, stride, width;  // width: chunks of a swizzled line
};

Matrix decode(uint64_t descriptor, Site site) {
  static const unsigned widths[4] = {1, 8, 4, 2};
  constexpr uint64_t kReserved = ~(0x3fffull | 0x3fffull << 16 | 0x3fffull << 32 | 3ull << 62);
  if (descriptor & kReserved)
    fail(Fault::kMisaligned, site, "wgmma: descriptor %016llx has a base offset or reserved bits, unknown here",
         (unsigned long long)descriptor);
  auto field = [&](int bit) { return (unsigned)(descriptor >> bit & 0x3fff) << 4; };
  return {field(0), field(16), field(32), widths[descriptor >> 62]};
}

// Address of a chunk in the window. K-major: values 8 * chunk and on of k, in row `line` of A or column
// `line` of B. Otherwise columns 8 * chunk and on at k = `line`.
unsigned chunk_address(const Matrix& m, bool k_major, unsigned line, unsigned chunk) {
  unsigned address = m.start;
  if (m.width == 1) {
    address += line % 8 * kChunk + line / 8 * (k_major ? m.stride : m.leading);
    return address + chunk * (k_major ? m.leading : m.stride);
  }
  address += line % 8 * m.width * kChunk + line / 8 * m.stride;
  address += k_major ? chunk * kChunk : chunk % m.width * kChunk + chunk / m.width * m.leading;
  return address ^ ((address >> 7 & (m.width - 1)) << 4);
}

const unsigned char* locate(unsigned address, Site site) {
  const unsigned char* found = at_window(address, kChunk);
  if (!found)
    fail(Fault::kOutOfBounds, site, "out of bounds: wgmma reads shared memory at %u, where no variable is", address);
  return found;
}

void read_chunk(Product& product, const Matrix& matrix, bool k_major, unsigned line, unsigned chunk, void* to) {
  const unsigned address = chunk_address(matrix, k_major, line, chunk);
  Chunk read = {locate(address, product.site), {}};
  if (const int writer = unfenced[address / kChunk])
    fail_at(Fault::kRace, product.pc, nullptr,
            "wgmma reads shared memory that thread %d has written without fence.proxy.async afterwards", writer - 1);
  memcpy(read.bytes, read.address, kChunk);
  memcpy(to, read.bytes, kChunk);
  product.read.push_back(read);
}

// Race mode: what this thread's warp reads, a 32nd of it.
void log_operands(const Product& product) {
  if (!race_mode) return;
  const int lane = lane_id(), warp = current_thread % kThreads / kWarpSize;
  if (!product.a[current_thread % kThreads]) {
    const Matrix a = decode(product.issued.a_matrix, product.site);
    log_access(locate(chunk_address(a, true, warp * 16 + lane / 2, lane % 2), product.site), kChunk, Access::kRead,
               product.pc);
  }
  const Matrix b = decode(product.issued.b_matrix, product.site);
  const bool k_major = !product.issued.transposed;
  const int per_line = k_major ? 2 : product.issued.columns / 8;
  for (int i = lane; i < product.issued.columns * 2; i += kWarpSize)
    log_access(locate(chunk_address(b, k_major, i / per_line, i % per_line), product.site), kChunk, Access::kRead,
               product.pc);
}

// ---- values ---------------------------------------------------------------------------------------------

template <class Convert>
void multiply(Product& product, float (&d)[kRows][kMostColumns]) {
  const int columns = product.issued.columns;
  uint32_t a_words[kRows][kDepth / 2], b_words[kDepth * kMostColumns / 2];
  product.read.clear();
  if (product.a[0]) {
    for (int thread = 0; thread < kThreads; ++thread)
      for (int i = 0; i < 4; ++i)  // as of mma.m16n8k16
        a_words[thread / 32 * 16 + thread % 32 / 4 + i % 2 * 8][thread % 4 + i / 2 * 4] = product.a_values[thread][i];
  } else {
    const Matrix a = decode(product.issued.a_matrix, product.site);
    for (int row = 0; row < kRows; ++row)
      for (int chunk = 0; chunk < 2; ++chunk) read_chunk(product, a, true, row, chunk, &a_words[row][chunk * 4]);
  }
  const Matrix b = decode(product.issued.b_matrix, product.site);
  const bool k_major = !product.issued.transposed;
  const int lines = k_major ? columns : kDepth, per_line = k_major ? 2 : columns / 8;
  for (int line = 0; line < lines; ++line)
    for (int chunk = 0; chunk < per_line; ++chunk)
      read_chunk(product, b, k_major, line, chunk, &b_words[(line * per_line + chunk) * 4]);

  static float a_values[kRows][kDepth], b_read[kDepth * kMostColumns], by_k[kDepth][kMostColumns];
  Convert::convert(&a_values[0][0], &a_words[0][0], kRows * kDepth);
  Convert::convert(b_read, b_words, kDepth * columns);
  for (int column = 0; column < columns; ++column)
    for (int k = 0; k < kDepth; ++k)
      by_k[k][column] = k_major ? b_read[column * kDepth + k] : b_read[k * columns + column];
  for (int row = 0; row < kRows; ++row)
    for (int first = 0; first < columns; first += 8)
      for (int k = 0; k < kDepth; ++k) {
        const float factor = a_values[row][k];
        for (int i = 0; i < 8; ++i) d[row][first + i] += factor * by_k[k][first + i];
      }
}

// Calls visit(register, value in the matrix) for this thread's part.
template <class Visit>
void each_of_thread(float* d, float (&values)[kRows][kMostColumns], int columns, Visit visit) {
  const int thread = current_thread % kThreads, row = thread / 32 * 16 + thread % 32 / 4;
  for (int i = 0; i < columns / 2; ++i)
    visit(d[i], values[row + i % 4 / 2 * 8][i / 4 * 8 + thread % 4 * 2 + i % 2]);
}

Warpgroup& own_warpgroup() { return warpgroups[current_thread / kThreads]; }

void compute(Warpgroup& group, Product& product) {
  Accumulators& accumulators = group.accumulators[product.accumulators % kAccumulators];
  if (!product.issued.accumulates) memset(accumulators.values, 0, sizeof accumulators.values);
  if (product.issued.type == SmallFloat::f16)
    multiply<HalfToFloat>(product, accumulators.values);
  else
    multiply<Bfloat16ToFloat>(product, accumulators.values);
  ++group.n_computed;
  ++progress;
  for (Fiber* fiber : group.waiting) make_ready(fiber);
  group.waiting.clear();
}

// Takes accumulators out of the thread's hands; they stay so until a wait.
InFlight& take(Warpgroup& group, Thread& self, const WarpgroupProduct& product, Site site) {
  for (InFlight& held : self.in_flight)
    if (held.d == product.d) {
      if (held.columns != product.columns)
        fail(Fault::kBarrier, site, "wgmma: accumulators of a product of %d columns that is under way", held.columns);
      return held;
    }
  const uint64_t serial = self.n_accumulators++;
  Accumulators& accumulators = group.accumulators[serial % kAccumulators];
  if (accumulators.serial != serial + 1) {
    if (accumulators.n_holding)
      fail(Fault::kBarrier, site, "wgmma: more than %d accumulators of a warpgroup under way", kAccumulators);
    accumulators.serial = serial + 1;
  }
  ++accumulators.n_holding;
  if (product.accumulates)
    each_of_thread(product.d, accumulators.values, product.columns, [](float& own, float& value) { value = own; });
  fill_poison(product.d, product.columns / 2 * sizeof(float));
  self.in_flight.push_back({product.d, product.columns, serial, 0});
  return self.in_flight.back();
}

void check_unchanged(const Product& product) {
  const int thread = current_thread % kThreads;
  if (product.a[thread] && memcmp(product.a[thread], product.a_values[thread], sizeof product.a_values[thread]))
    fail_at(Fault::kRace, product.pc, nullptr, "registers of A were changed before a wait for their wgmma");
  if (lane_id()) return;
  for (const Chunk& chunk : product.read)
    if (memcmp(chunk.address, chunk.bytes, kChunk)) {
      char name[96] = "shared memory";
      describe_shared_address(reinterpret_cast<uintptr_t>(chunk.address), name, sizeof name);
      fail_at(Fault::kRace, product.pc, nullptr, "%s was changed between a wgmma that reads it and the wait for it",
              name);
    }
}

}  // namespace

void wgmma(const WarpgroupProduct& wanted, Site site) {
  const void* pc = __builtin_return_address(0);
  const int first = current_thread / kThreads * kThreads;
  if (first + kThreads > current.n_threads)
    fail(Fault::kBarrier, site, "wgmma needs whole warpgroups of %d threads; the block has %d threads", kThreads,
         current.n_threads);
  Warpgroup& group = own_warpgroup();
  Thread& self = threads[current_thread];
  const size_t n_held = self.in_flight.size();
  InFlight& held = take(group, self, wanted, site);
  if (!self.fenced && (wanted.a || self.in_flight.size() != n_held))
    fail(Fault::kBarrier, site, "wgmma without wgmma.fence after registers that it uses may have been touched");
  const uint64_t number = self.n_issued++;
  held.last_product = number;
  Product& product = group.products[number % kProducts];
  if (product.n_issued == kThreads) {  // an older one
    if (product.n_finished != kThreads)
      fail(Fault::kBarrier, site, "wgmma: more than %d products of a warpgroup under way", kProducts);
    product.n_issued = product.n_finished = 0;
  }
  if (product.n_issued == 0) {
    product.issued = wanted;
    product.number = number;
    product.site = site;
    product.pc = pc;
    product.accumulators = held.accumulators;
  }
  const WarpgroupProduct& issued = product.issued;
  const bool same_operands = issued.a_matrix == wanted.a_matrix && issued.b_matrix == wanted.b_matrix &&
                             !issued.a == !wanted.a && product.accumulators == held.accumulators;
  const bool same_kind = issued.columns == wanted.columns && issued.type == wanted.type &&
                         issued.transposed == wanted.transposed && issued.accumulates == wanted.accumulates;
  if (product.number != number || product.site.line != site.line || !same_operands || !same_kind)
    fail(Fault::kBarrier, site, "threads of a warpgroup issue different products: thread %d here, others on line %d",
         current_thread, product.site.line);
  const int thread = current_thread % kThreads;
  product.a[thread] = wanted.a;
  if (wanted.a) memcpy(product.a_values[thread], wanted.a, sizeof product.a_values[thread]);
  log_operands(product);
  if (++product.n_issued == kThreads) compute(group, product);
}

void wgmma_fence() { threads[current_thread].fenced = true; }

void wgmma_commit() {
  Thread& self = threads[current_thread];
  self.groups.push_back(self.n_issued);
}

void wgmma_wait(int groups_in_flight, Site site) {
  Warpgroup& group = own_warpgroup();
  Thread& self = threads[current_thread];
  self.fenced = false;
  // Time passes: who overwrites operands too early may do so now.
  if (current.launch->order == static_cast<uint32_t>(Order::kRandom)) yield();
  if (self.groups.size() <= (size_t)groups_in_flight) return;
  const uint64_t until = self.groups[self.groups.size() - 1 - groups_in_flight];
  self.groups.erase(self.groups.begin(), self.groups.end() - groups_in_flight);
  while (group.n_computed < until) {
    group.waiting.push_back(current_fiber());
    block_current_thread(WaitKind::kCollective, site);
  }
  for (; self.n_finished < until; ++self.n_finished) {
    Product& product = group.products[self.n_finished % kProducts];
    check_unchanged(product);
    log_operands(product);
    ++product.n_finished;
  }
  for (size_t i = 0; i < self.in_flight.size();) {
    const InFlight held = self.in_flight[i];
    if (held.last_product >= until) {
      ++i;
      continue;
    }
    Accumulators& accumulators = group.accumulators[held.accumulators % kAccumulators];
    each_of_thread(held.d, accumulators.values, held.columns, [](float& own, float& value) { own = value; });
    --accumulators.n_holding;
    self.in_flight.erase(self.in_flight.begin() + i);
  }
}

// ---- the two views of shared memory ---------------------------------------------------------------------

void note_shared_write(const void* address, size_t bytes) {
  unsigned begin;
  if (!find_in_window(address, &begin)) return;
  any_unfenced = true;
  for (unsigned chunk = begin / kChunk; chunk <= (begin + bytes - 1) / kChunk; ++chunk) {
    if (const int before = unfenced[chunk]) --n_unfenced[before - 1];
    unfenced[chunk] = (uint16_t)(current_thread + 1);
    ++n_unfenced[current_thread];
  }
}

void fence_shared_write(const void* address, size_t bytes) {
  unsigned begin;
  if (!any_unfenced || !find_in_window(address, &begin)) return;
  for (unsigned chunk = begin / kChunk; chunk <= (begin + bytes - 1) / kChunk; ++chunk) {
    if (const int before = unfenced[chunk]) --n_unfenced[before - 1];
    unfenced[chunk] = 0;
  }
}

int unfenced_writer(unsigned window_address) { return unfenced[window_address / kChunk] - 1; }

void fence_proxy_async() {
  int& left = n_unfenced[current_thread];
  for (unsigned chunk = 0; left && chunk < kSharedWindow / kChunk; ++chunk)
    if (unfenced[chunk] == current_thread + 1) {
      unfenced[chunk] = 0;
      --left;
    }
}

void reset_wgmma() {
  for (int i = 0; i < current.n_threads; ++i) {
    Thread& thread = threads[i];
    if (!thread.n_issued && thread.groups.empty()) {
      thread.fenced = false;
      continue;
    }
    thread.n_issued = thread.n_finished = thread.n_accumulators = 0;
    thread.groups.clear();
    thread.in_flight.clear();
    thread.fenced = false;
    Warpgroup& group = warpgroups[i / kThreads];
    group.n_computed = 0;
    for (Product& product : group.products) product.n_issued = product.n_finished = 0;
    for (Accumulators& accumulators : group.accumulators) accumulators.serial = 0, accumulators.n_holding = 0;
    group.waiting.clear();
  }
  if (!any_unfenced) return;
  memset(unfenced, 0, sizeof unfenced);
  memset(n_unfenced, 0, sizeof n_unfenced);
  any_unfenced = false;
}

}  // namespace cudasim
