// SPDX-License-Identifier: Apache-2.0
//
// Attention metadata of all draft steps of speculative decoding, in one launch. From the lengths and slots of a batch it
// writes, for each of N destinations: cache lengths, their prefix sums, the lengths clipped to NSA's top-k and their prefix
// sums, the slots of every position, and the pages of every position. ../../fused_metadata_precompute_and_broadcast.py has
// the definition in torch and checks every argument; nothing is checked here but what only the device knows.
//
// Two kinds of blocks share the grid, and none waits for another:
//   [0, N)   block i scans the lengths of the batch for destination i. The scans run side by side, and each destination
//            may have lengths of its own.
//   [N, ..)  the others each read a part of one request's slots once and write it to all rows of all destinations.

#include <sgl_kernel/utils.h>

#include <sgl_kernel/utils.cuh>

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/optional.h>
#include <tvm/ffi/string.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

// Since 0.5.18 SGLang's helpers are in a namespace of its own.
namespace sglang {}
using namespace sglang;

namespace {

constexpr uint32_t kThreads = 256;
constexpr uint32_t kWarps = kThreads / device::kWarpThreads;
constexpr uint32_t kAllLanes = 0xffffffffu;
constexpr int32_t kVector = 4;  // columns per thread and step
// Destinations per launch. Parameters stay below the 4 KB that every driver takes.
constexpr int32_t kMaxDestinations = 32;
// Blocks that fill a large GPU about twice. More would only add blocks that do little.
constexpr int64_t kTargetBlocks = 2048;

/// One draft step's tensors. A null pointer is not written. The Python side packs the same ten 8-byte fields.
struct Destination {
  int32_t* cache_seqlens;      // [batch]
  int32_t* cu_seqlens_k;       // [batch + 1]
  int32_t* page_indices;       // [rows, >= max_len]
  int32_t* nsa_cache_seqlens;  // [rows]
  int32_t* nsa_cu_seqlens_k;   // [rows + 1]
  int32_t* seqlens_expanded;   // [rows]
  int32_t* real_page_table;    // [rows, >= ceil(max_len / page_size)]
  int64_t page_indices_stride;
  int64_t real_page_table_stride;
  int64_t length_offset;  // added to every sequence length
};
static_assert(sizeof(Destination) == 80);

/// An int32 or int64 vector. The branch is the same for all threads.
struct Integers {
  const void* data;
  bool is_int64;
};

struct Params {
  Integers seq_lens;          // [batch]
  Integers req_pool_indices;  // [batch]
  Integers extend_seq_lens;   // [batch], or null: rows_per_request each
  const void* req_to_token;   // [num_requests, >= max_len]
  int64_t req_to_token_stride;
  int64_t num_requests;
  int64_t longest_offset;  // the largest of the destinations'
  int32_t batch_size;
  int32_t rows_per_request;  // with extend_seq_lens: the most that a request may have
  int32_t max_len;
  int32_t index_topk;
  int32_t page_size;
  int32_t tile;  // columns per block and step
  int32_t blocks_per_request;
  int32_t num_destinations;
  bool ragged;  // write a row up to its length instead of up to max_len
  Destination destinations[kMaxDestinations];
};
static_assert(sizeof(Params) <= 4096);

SGL_DEVICE int64_t load_integer(const Integers& vector, int64_t index) {
  return vector.is_int64 ? device::load_as<int64_t>(vector.data, index) : device::load_as<int32_t>(vector.data, index);
}

/// Rows of a request. More than the destinations hold stops the kernel, as an index out of range stops torch's.
SGL_DEVICE int32_t load_rows(const Params& params, int64_t request) {
  if (params.extend_seq_lens.data == nullptr) return params.rows_per_request;
  const int64_t rows = load_integer(params.extend_seq_lens, request);
  if (rows < 0 || rows > params.rows_per_request) __trap();
  return static_cast<int32_t>(rows);
}

/// Exclusive prefix sums of kFields values per thread over the block; adds the block's totals to `carry`.
/// Unsigned, so that sums past 2^31 wrap as torch's do.
template <int kFields>
SGL_DEVICE void scan_block(const uint32_t (&value)[kFields], uint32_t (&before)[kFields], uint32_t (&carry)[kFields]) {
  __shared__ uint32_t warp_totals[kWarps][kFields];
  const uint32_t lane = threadIdx.x % device::kWarpThreads, warp = threadIdx.x / device::kWarpThreads;
#pragma unroll
  for (int f = 0; f < kFields; ++f) {
    uint32_t sum = value[f];
#pragma unroll
    for (uint32_t distance = 1; distance < device::kWarpThreads; distance *= 2) {
      const uint32_t left = __shfl_up_sync(kAllLanes, sum, distance);
      if (lane >= distance) sum += left;
    }
    before[f] = carry[f] + sum - value[f];
    if (lane == device::kWarpThreads - 1) warp_totals[warp][f] = sum;
  }
  __syncthreads();
#pragma unroll
  for (uint32_t w = 0; w < kWarps; ++w) {
#pragma unroll
    for (int f = 0; f < kFields; ++f) {
      if (w < warp) before[f] += warp_totals[w][f];
      carry[f] += warp_totals[w][f];
    }
  }
  __syncthreads();  // before the next scan writes warp_totals
}

/// All that one destination has per request and per row: the batch in steps of a block, with a carry.
SGL_DEVICE void write_lengths(const Params& params, const Destination& out) {
  if (threadIdx.x == 0) {
    if (out.cu_seqlens_k) out.cu_seqlens_k[0] = 0;
    if (out.nsa_cu_seqlens_k) out.nsa_cu_seqlens_k[0] = 0;
  }
  uint32_t carry[3] = {0, 0, 0};
  for (int32_t first = 0; first < params.batch_size; first += kThreads) {
    const int32_t request = first + threadIdx.x;
    const bool live = request < params.batch_size;
    const int32_t length = live ? static_cast<int32_t>(load_integer(params.seq_lens, request) + out.length_offset) : 0;
    const int32_t rows = live ? load_rows(params, request) : 0;
    uint32_t clipped = 0;
    for (int32_t row = 0; row < rows; ++row)
      clipped += min(length - rows + 1 + row, params.index_topk);
    uint32_t before[3];
    scan_block({static_cast<uint32_t>(length), static_cast<uint32_t>(rows), clipped}, before, carry);
    if (!live) continue;  // the last step: no scan follows
    if (out.cache_seqlens) out.cache_seqlens[request] = length;
    if (out.cu_seqlens_k) out.cu_seqlens_k[request + 1] = before[0] + length;
    uint32_t nsa_sum = before[2];
    for (int32_t row = 0; row < rows; ++row) {
      const int32_t expanded = length - rows + 1 + row;
      const int64_t at = before[1] + row;
      nsa_sum += min(expanded, params.index_topk);
      if (out.seqlens_expanded) out.seqlens_expanded[at] = expanded;
      if (out.nsa_cache_seqlens) out.nsa_cache_seqlens[at] = min(expanded, params.index_topk);
      if (out.nsa_cu_seqlens_k) out.nsa_cu_seqlens_k[at + 1] = nsa_sum;
    }
  }
}

/// First row of a request: what the requests before it have. Called by the whole block.
SGL_DEVICE int64_t first_row_of(const Params& params, int32_t request) {
  if (params.extend_seq_lens.data == nullptr) return static_cast<int64_t>(request) * params.rows_per_request;
  uint32_t mine[1] = {0}, before[1], total[1] = {0};
  for (int32_t other = threadIdx.x; other < request; other += kThreads)
    mine[0] += load_rows(params, other);
  scan_block(mine, before, total);
  return total[0];
}

/// Rounds down, as torch does; a slot is never negative, but what lies behind a sequence's end might be.
SGL_DEVICE int32_t page_of(int64_t slot, int32_t page_size) {
  const int64_t quotient = slot / page_size;
  return static_cast<int32_t>(quotient - (slot % page_size < 0));
}

template <typename Token>
struct alignas(16) Tokens {
  Token at[kVector];
};
struct alignas(16) Indices {
  int32_t at[kVector];
};

/// Columns [begin, end) of one request, token by token. `begin` is a multiple of kVector.
template <typename Token, bool kAligned>
SGL_DEVICE void write_page_indices(
    const Params& params, const Token* slots, int64_t length, int64_t row, int32_t rows, int32_t begin, int32_t end) {
  for (int32_t column = begin + threadIdx.x * kVector; column < end; column += kThreads * kVector) {
    Tokens<Token> tokens;
    if (kAligned && column + kVector <= end) {
      tokens = device::load_as<Tokens<Token>>(slots + column);
    } else {
      for (int32_t v = 0; v < kVector; ++v)
        tokens.at[v] = column + v < end ? slots[column + v] : 0;
    }
    Indices indices;
#pragma unroll
    for (int32_t v = 0; v < kVector; ++v)
      indices.at[v] = static_cast<int32_t>(tokens.at[v]);
    for (int32_t d = 0; d < params.num_destinations; ++d) {
      const Destination& out = params.destinations[d];
      const int64_t limit = params.ragged ? min(static_cast<int64_t>(end), length + out.length_offset) : end;
      int32_t* target = out.page_indices + row * out.page_indices_stride + column;
      for (int32_t r = 0; r < rows; ++r, target += out.page_indices_stride) {
        if (kAligned && column + kVector <= limit) {
          device::store_as<Indices>(target, indices);
        } else {
#pragma unroll
          for (int32_t v = 0; v < kVector; ++v)
            if (column + v < limit) target[v] = indices.at[v];
        }
      }
    }
  }
}

/// The pages whose first token is in columns [begin, end) of one request.
template <typename Token>
SGL_DEVICE void write_real_page_table(
    const Params& params, const Token* slots, int64_t length, int64_t row, int32_t rows, int32_t begin, int32_t end) {
  const int64_t last = device::div_ceil(static_cast<int64_t>(end), params.page_size);
  int64_t page = device::div_ceil(static_cast<int64_t>(begin), params.page_size) + threadIdx.x;
  for (; page < last; page += kThreads) {
    const int64_t column = page * params.page_size;
    const int32_t value = page_of(slots[column], params.page_size);
    for (int32_t d = 0; d < params.num_destinations; ++d) {
      const Destination& out = params.destinations[d];
      if (params.ragged && column >= length + out.length_offset) continue;
      int32_t* target = out.real_page_table + row * out.real_page_table_stride + page;
      for (int32_t r = 0; r < rows; ++r, target += out.real_page_table_stride)
        *target = value;
    }
  }
}

template <typename Token, bool kAligned>
__global__ __launch_bounds__(kThreads) void fused_metadata_precompute_and_broadcast_kernel(
    const __grid_constant__ Params params) {
  if (blockIdx.x < static_cast<uint32_t>(params.num_destinations)) {
    write_lengths(params, params.destinations[blockIdx.x]);
    return;
  }
  const uint32_t block = blockIdx.x - params.num_destinations;
  const int32_t request = block / params.blocks_per_request;
  const int32_t rows = load_rows(params, request);
  const int64_t row = first_row_of(params, request);
  const int64_t pool_index = load_integer(params.req_pool_indices, request);
  if (pool_index < 0 || pool_index >= params.num_requests) __trap();
  const Token* slots = static_cast<const Token*>(params.req_to_token) + pool_index * params.req_to_token_stride;
  const int64_t length = params.ragged ? load_integer(params.seq_lens, request) : 0;
  const int64_t columns =
      params.ragged ? min(static_cast<int64_t>(params.max_len), length + params.longest_offset) : params.max_len;
  int64_t begin = static_cast<int64_t>(block % params.blocks_per_request) * params.tile;
  for (; begin < columns; begin += static_cast<int64_t>(params.blocks_per_request) * params.tile) {
    const int32_t end = min(begin + params.tile, columns);
    if (params.destinations[0].page_indices)
      write_page_indices<Token, kAligned>(params, slots, length, row, rows, begin, end);
    if (params.destinations[0].real_page_table)
      write_real_page_table<Token>(params, slots, length, row, rows, begin, end);
  }
}

struct FusedMetadataKernel {
  /// 16-byte loads and stores need every row of every table to begin at a multiple of 16 bytes.
  static bool is_aligned(const Params& params, int64_t token_bytes) {
    const auto multiple = [](const void* data, int64_t row_bytes) {
      return reinterpret_cast<uintptr_t>(data) % 16 == 0 && row_bytes % 16 == 0;
    };
    if (!multiple(params.req_to_token, params.req_to_token_stride * token_bytes)) return false;
    return std::all_of(params.destinations, params.destinations + params.num_destinations, [&](const Destination& out) {
      return multiple(out.page_indices, out.page_indices_stride * sizeof(int32_t));
    });
  }

  static Integers integers(const tvm::ffi::TensorView& tensor) {
    return {.data = tensor.data_ptr(), .is_int64 = tensor.dtype().bits == 64};
  }

  /// Arguments as fused_metadata_precompute_and_broadcast.py has checked them; `destinations` holds whole Destinations.
  static void
  run(const tvm::ffi::TensorView seq_lens,
      const tvm::ffi::TensorView req_pool_indices,
      const tvm::ffi::TensorView req_to_token,
      const tvm::ffi::Optional<tvm::ffi::TensorView> extend_seq_lens,
      const tvm::ffi::Bytes destinations,
      const int64_t max_len,
      const int64_t index_topk,
      const int64_t page_size,
      const int64_t rows_per_request,
      const bool ragged) {
    using namespace host;
    RuntimeCheck(destinations.size() % sizeof(Destination) == 0, "destinations are packed for another kernel");
    const int64_t count = destinations.size() / sizeof(Destination);
    const int64_t batch_size = seq_lens.size(0);
    const bool is_int64 = req_to_token.dtype().bits == 64;

    Params params{};
    params.seq_lens = integers(seq_lens);
    params.req_pool_indices = integers(req_pool_indices);
    if (extend_seq_lens.has_value()) params.extend_seq_lens = integers(extend_seq_lens.value());
    params.req_to_token = req_to_token.data_ptr();
    params.req_to_token_stride = req_to_token.stride(0);
    params.num_requests = req_to_token.size(0);
    params.batch_size = static_cast<int32_t>(batch_size);
    params.rows_per_request = static_cast<int32_t>(rows_per_request);
    params.max_len = static_cast<int32_t>(max_len);
    params.index_topk = static_cast<int32_t>(index_topk);
    params.page_size = static_cast<int32_t>(page_size);
    params.ragged = ragged;

    for (int64_t first = 0; first < count; first += kMaxDestinations) {
      params.num_destinations = static_cast<int32_t>(std::min<int64_t>(count - first, kMaxDestinations));
      std::memcpy(
          params.destinations,
          destinations.data() + first * sizeof(Destination),
          params.num_destinations * sizeof(Destination));
      const Destination& head = params.destinations[0];
      params.longest_offset = head.length_offset;
      for (int32_t d = 1; d < params.num_destinations; ++d)
        params.longest_offset = std::max(params.longest_offset, params.destinations[d].length_offset);

      // A block writes as many columns of the widest table as it has threads, times kVector where it writes tokens.
      const int64_t tile = head.page_indices ? kThreads * kVector : std::min<int64_t>(kThreads * page_size, 1 << 30);
      const bool has_table = head.page_indices || head.real_page_table;
      const int64_t tiles = has_table ? div_ceil(max_len, tile) : 0;
      params.tile = static_cast<int32_t>(tile);
      params.blocks_per_request = static_cast<int32_t>(
          std::min(tiles, std::max<int64_t>(1, kTargetBlocks / std::max<int64_t>(1, batch_size))));

      const int64_t blocks = params.num_destinations + batch_size * params.blocks_per_request;
      const bool aligned = is_aligned(params, is_int64 ? 8 : 4);
      const auto kernel = is_int64 ? (aligned ? fused_metadata_precompute_and_broadcast_kernel<int64_t, true>
                                              : fused_metadata_precompute_and_broadcast_kernel<int64_t, false>)
                                   : (aligned ? fused_metadata_precompute_and_broadcast_kernel<int32_t, true>
                                              : fused_metadata_precompute_and_broadcast_kernel<int32_t, false>);
      LaunchKernel(static_cast<uint32_t>(blocks), kThreads, seq_lens.device())(kernel, params);
    }
  }
};

}  // namespace
