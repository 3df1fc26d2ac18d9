// ldmatrix and mma.sync, lane by lane as the PTX ISA lays out their fragments. The last lane to
// arrive gathers the operands of all 32, multiplies, and scatters the result.
#include <string.h>

#include "runner.h"
#include "small_float_values.h"

namespace cudasim {

namespace {

MmaOperands operands_of(const Round& round, int lane) {
  const MmaOperands* operands;
  memcpy(&operands, round.data[lane], sizeof operands);
  return *operands;
}

// The C and D fragment of m16n8: lane l holds rows l/4 and l/4 + 8, columns 2*(l%4) and the next.
template <class T>
void gather_accumulators(const Round& round, T (&d)[16][8]) {
  for (int lane = 0; lane < 32; ++lane) {
    const T* held = static_cast<const T*>(operands_of(round, lane).d);
    memcpy(&d[lane / 4][2 * (lane % 4)], held, 2 * sizeof(T));
    memcpy(&d[lane / 4 + 8][2 * (lane % 4)], held + 2, 2 * sizeof(T));
  }
}
template <class T>
void scatter_accumulators(const Round& round, const T (&d)[16][8]) {
  for (int lane = 0; lane < 32; ++lane) {
    T* held = static_cast<T*>(operands_of(round, lane).d);
    memcpy(held, &d[lane / 4][2 * (lane % 4)], 2 * sizeof(T));
    memcpy(held + 2, &d[lane / 4 + 8][2 * (lane % 4)], 2 * sizeof(T));
  }
}

// Operands as 32-bit registers, each 4 / n consecutive k of one row of A or one column of B:
// register i of A holds row l/4 (+ 8 if i is odd), k-register l%4 (+ 4 if i >= 2); register i of B
// holds column l/4, k-register l%4 + 4*i.
void gather_operands(const Round& round, uint32_t (&a)[16][8], uint32_t (&b)[8][8]) {
  for (int lane = 0; lane < 32; ++lane) {
    const MmaOperands operands = operands_of(round, lane);
    const int row = lane / 4, k = lane % 4;
    a[row][k] = operands.a[0];
    a[row + 8][k] = operands.a[1];
    a[row][k + 4] = operands.a[2];
    a[row + 8][k + 4] = operands.a[3];
    b[row][k] = operands.b[0];
    b[row][k + 4] = operands.b[1];
  }
}

template <class T, int n_k, class A, class B>
void multiply(T (&d)[16][8], const A (&a)[16][n_k], const B (&b)[8][n_k]) {
  T by_k[n_k][8];
  for (int column = 0; column < 8; ++column)
    for (int k = 0; k < n_k; ++k) by_k[k][column] = b[column][k];
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < n_k; ++k) {
      const T factor = a[row][k];
      for (int column = 0; column < 8; ++column) d[row][column] += factor * by_k[k][column];
    }
}

template <class Convert>
void complete_m16n8k16(Round& round) {
  uint32_t a[16][8], b[8][8];
  float a_values[16][16], b_values[8][16], d[16][8];
  gather_operands(round, a, b);
  Convert::convert(&a_values[0][0], &a[0][0], 16 * 16);
  Convert::convert(&b_values[0][0], &b[0][0], 8 * 16);
  gather_accumulators(round, d);
  multiply(d, a_values, b_values);
  scatter_accumulators(round, d);
}

}  // namespace

void complete_mma_m16n8k16_f16(Round& round) { complete_m16n8k16<HalfToFloat>(round); }
void complete_mma_m16n8k16_bf16(Round& round) { complete_m16n8k16<Bfloat16ToFloat>(round); }

// tf32 registers hold float32; the hardware ignores the low 13 bits.
void complete_mma_m16n8k8_tf32(Round& round) {
  uint32_t a[16][8], b[8][8];
  float a_values[16][8], b_values[8][8], d[16][8];
  gather_operands(round, a, b);
  for (auto& row : a)
    for (uint32_t& value : row) value &= 0xffffe000u;
  for (auto& column : b)
    for (uint32_t& value : column) value &= 0xffffe000u;
  memcpy(a_values, a, sizeof a);
  memcpy(b_values, b, sizeof b);
  gather_accumulators(round, d);
  multiply(d, a_values, b_values);
  scatter_accumulators(round, d);
}

void complete_mma_m16n8k32_s8(Round& round) {
  uint32_t a[16][8], b[8][8];
  int8_t a_values[16][32], b_values[8][32];
  int32_t d[16][8];
  gather_operands(round, a, b);
  memcpy(a_values, a, sizeof a);
  memcpy(b_values, b, sizeof b);
  gather_accumulators(round, d);
  multiply(d, a_values, b_values);
  scatter_accumulators(round, d);
}

// Lane l gives the address of row l%8 of matrix l/8 (8 x 8 values of 16 bits) and receives, of each
// matrix, values 2*(l%4) and the next of row l/4; transposed: of column l/4.
void load_matrix(uint32_t* registers, int n_matrices, bool transposed, const void* row, Site site) {
  const int lane = lane_id();
  alignas(16) unsigned char bytes[16] = {};
  if (lane < 8 * n_matrices) {  // addresses of other lanes are not used
    if (reinterpret_cast<uintptr_t>(row) & 15)
      fail(Fault::kMisaligned, site, "ldmatrix: lane %d's row at %p is not 16-byte aligned", lane, row);
    if (race_mode) log_access(row, 16, Access::kRead, __builtin_return_address(0));
    memcpy(bytes, row, 16);
  }
  const Round& round = meet(0xffffffffu, Collective::kLoadMatrix, site, bytes, nullptr);
  for (int matrix = 0; matrix < n_matrices; ++matrix) {
    const auto* rows = &round.data[8 * matrix];
    if (transposed) {
      uint16_t pair[2];
      memcpy(&pair[0], rows[2 * (lane % 4)] + 2 * (lane / 4), 2);
      memcpy(&pair[1], rows[2 * (lane % 4) + 1] + 2 * (lane / 4), 2);
      memcpy(&registers[matrix], pair, 4);
    } else {
      memcpy(&registers[matrix], rows[lane / 4] + 4 * (lane % 4), 4);
    }
  }
}

}  // namespace cudasim
