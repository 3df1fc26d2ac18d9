// What every attention kernel is told, and which keys a query may see.
#pragma once

constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.693147180559945309f;

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }

// By value, as attention.py's CALL lays it out. Strides are in elements. A tile is `tile_heads` query
// heads of one K/V head by `tile_tokens` tokens; its row r is head r % tile_heads, token r / tile_heads.
struct AttentionCall {
  long long q_head, q_token, k_head, k_key, v_head, v_key, out_head, out_token;
  long long mask_head, mask_token, mask_key, lse_head;
  int n_head_kv, group, n_tokens, n_keys;  // group: query heads of one K/V head
  int tile_heads, tile_tokens, head_tiles, token_tiles;
  int splits, keys_per_split;  // parts of the keys worked on side by side, merged afterwards
  int first_position;          // of token 0, counted from the first of these keys; may be negative
  int causal, window;
  int v_column;        // attention_latent: V's first column inside K
  int aligned;         // rows of Q, K and V start at multiples of 16 bytes
  int out_is_float32;  // else out has the type of Q
  int resume, finish;  // continue from the state; write the result, not the state
  float scale, softcap;  // softcap 0: none; attention_merge: scale of the states' maxima
  // Set by kernels, see `counting`: where the number of keys stands, n_keys at most; or nullptr.
  const volatile int* n_kv;
};

// The call, with its number of keys in the device's memory unless `n_kv` is nullptr: for launches that a graph repeats
// while a cache grows. first_position and keys_per_split follow from it.
__device__ __forceinline__ AttentionCall counting(AttentionCall call, const int* n_kv) {
  call.n_kv = n_kv;
  return call;
}

#ifdef KEYS_FROM_HOST  // the largest tiles have no registers for more
__device__ __forceinline__ bool keys_are_counted(const AttentionCall& call) { return false; }
__device__ __forceinline__ int keys_there(const AttentionCall& call) { return call.n_keys; }
__device__ __forceinline__ int first_position(const AttentionCall& call) { return call.first_position; }
#else
__device__ __forceinline__ bool keys_are_counted(const AttentionCall& call) { return call.n_kv != nullptr; }

// How many keys there are. Volatile, and asked for anew each time: a register that held it would be one too many.
__device__ __forceinline__ int keys_there(const AttentionCall& call) {
  return keys_are_counted(call) ? max(0, min(*call.n_kv, call.n_keys)) : call.n_keys;
}

__device__ __forceinline__ int first_position(const AttentionCall& call) {
  return keys_are_counted(call) ? keys_there(call) - call.n_tokens : call.first_position;
}
#endif

// Where a block works: grid index = (((split * n_head_kv) + head_kv) * head_tiles + head tile) *
// token_tiles + token tile, the last tokens first, because under causality they take longest.
struct TilePlace {
  int split, head_kv, first_head, n_heads, first_token, n_tokens;

  __device__ __forceinline__ int n_rows(const AttentionCall& call) const {
    return n_tokens * call.tile_heads;  // rows of heads past n_heads are padding
  }
};

__device__ __forceinline__ TilePlace place_of_block(const AttentionCall& call, unsigned block) {
  TilePlace place;
  const int token_tile = call.token_tiles - 1 - (int)(block % call.token_tiles);
  block /= call.token_tiles;
  const int head_tile = (int)(block % call.head_tiles);
  block /= call.head_tiles;
  place.head_kv = (int)(block % call.n_head_kv);
  place.split = (int)(block / call.n_head_kv);
  place.first_head = head_tile * call.tile_heads;
  place.n_heads = min(call.tile_heads, call.group - place.first_head);
  place.first_token = token_tile * call.tile_tokens;
  place.n_tokens = min(call.tile_tokens, call.n_tokens - place.first_token);
  return place;
}

// One row of a tile: its token, its query head counted over all heads, and whether there is one.
struct TileRow {
  int token, head;
  bool exists;
};

__device__ __forceinline__ TileRow row_of_tile(const AttentionCall& call, const TilePlace& place, int row) {
  const int token = row / call.tile_heads, head = row - token * call.tile_heads;
  return {place.first_token + token, place.head_kv * call.group + place.first_head + head,
          token < place.n_tokens && head < place.n_heads};
}

// Keys low <= c < high, counted from the first of these keys.
struct KeyRange {
  int low, high;
};

__device__ __forceinline__ KeyRange visible_keys(const AttentionCall& call, int token) {
  const long long position = (long long)first_position(call) + token;
  KeyRange range = {0, keys_there(call)};
  if (call.causal) range.high = (int)max(0ll, min((long long)keys_there(call), position + 1));
  range.low = (int)max(0ll, min((long long)keys_there(call), position - call.window + 1));
  return range;
}

// Of each split: whole tiles of keys.
__device__ __forceinline__ int keys_of_split(const AttentionCall& call, int tile_keys) {
  if (!keys_are_counted(call)) return call.keys_per_split;
  const int tiles = max(1, (keys_there(call) + tile_keys - 1) / tile_keys);
  return (tiles + call.splits - 1) / call.splits * tile_keys;
}

// Keys that any token of the tile may see, within the block's split.
__device__ __forceinline__ KeyRange keys_of_tile(const AttentionCall& call, const TilePlace& place, int tile_keys) {
  const long long first = (long long)place.split * keys_of_split(call, tile_keys);
  KeyRange range = {visible_keys(call, place.first_token).low,
                    visible_keys(call, place.first_token + place.n_tokens - 1).high};
  range.low = max(range.low, (int)min(first, (long long)call.n_keys));
  range.high = min(range.high, (int)min(first + keys_of_split(call, tile_keys), (long long)call.n_keys));
  return range;
}

// Keys that every token of the tile may see.
__device__ __forceinline__ KeyRange keys_of_all(const AttentionCall& call, const TilePlace& place) {
  return {visible_keys(call, place.first_token + place.n_tokens - 1).low,
          visible_keys(call, place.first_token).high};
}

// The options that come on top of scale * q.k; `score` is q.k. Unless `exact`, the softcap errs by some
// 1e-7 of itself. Not in units of log2: scores and masks may reach float32's ends, and log2(e) times more
// is past them.
template <bool exact>
__device__ __forceinline__ float general_score(const AttentionCall& call, float score, const float* mask_row,
                                               int key, float slope, int position) {
  score *= call.scale;
  if (call.softcap > 0.0f) {
    const float x = score / call.softcap;
    const float tanh_x = exact ? tanhf(x) : 1.0f - 2.0f / (1.0f + exp2f(2.0f * kLog2E * x));
    score = call.softcap * tanh_x;
  }
  if (mask_row != nullptr) {
    const float bias = mask_row[key * call.mask_key];
    // -inf leaves the key out even where the score is NaN
    score = bias == -infinity() ? bias : score + bias;
  }
  return score - slope * fabsf((float)(position - key));
}

// The fused kernels keep a row's maximum as its scores are: q.k, or what general_score makes of it. `unit`
// is what turns those into units of log2. A weight is 2 ** (score * unit - reference), one multiply-add,
// where the reference is the row's maximum * unit, rounded: the same for all of its weights, so that the
// rounding cancels. Where the reference is far from 0 it would not; there the maximum is subtracted before
// anything is multiplied, which is exact enough at any size.
constexpr float kFar = 1024.0f;

__device__ __forceinline__ bool is_far(float reference) { return fabsf(reference) > kFar; }

// What scores are measured from, as the maximum is: 0 where there are no keys but left-out ones so far.
__device__ __forceinline__ float base_of(float row_max) { return row_max == -infinity() ? 0.0f : row_max; }

__device__ __forceinline__ float reference_of(float base, float unit) { return __fmul_rn(base, unit); }

// log2 of what sums measured from the maximum `old` are multiplied by to be measured from `base`.
__device__ __forceinline__ float log2_of_rescale(float old, float base, float unit) {
  const float reference = reference_of(base, unit);
  return is_far(reference) ? (old - base) * unit : reference_of(old, unit) - reference;
}

// The rows' state between launches, one after another: [split][K/V head][head of group][token].
__device__ __forceinline__ long long state_row(const AttentionCall& call, const TilePlace& place,
                                               const TileRow& row) {
  const long long n_head = (long long)call.n_head_kv * call.group;
  return (place.split * n_head + row.head) * call.n_tokens + row.token;
}

// What a finished row's sums are multiplied by, and the log of its denominator. `row_max` is the row's
// maximum, `sum` that of exp(score - top); a sink joins both and has no value. A maximum past float32
// makes the row NaN; keys below it count as left out.
struct RowEnd {
  float factor, lse;
};

__device__ __forceinline__ RowEnd finish_row(float row_max, float sum, const float* sinks, int head) {
  if (row_max == infinity()) sum *= row_max - row_max;  // NaN
  if (row_max == -infinity()) sum *= 0.0f;      // but for NaN
  float rescale = 1.0f;
  const float sink = sinks == nullptr ? -infinity() : sinks[head];
  if (sink != -infinity()) {
    const float new_max = fmaxf(row_max, sink);
    rescale = exp2f((row_max - new_max) * kLog2E);
    sum = sum * rescale + exp2f((sink - new_max) * kLog2E);
    row_max = new_max;
  }
  if (sum == 0.0f) return {0.0f, -infinity()};
  return {rescale / sum, row_max + log2f(sum) * kLn2};
}
