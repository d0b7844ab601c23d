// DCNv3 backward. Per row and point: products of the four corners with the output gradient, reduced
// over the channels by shuffles, give the gradients of offset and mask, which are written in their
// own type. The input gradient is accumulated in a copy in shared memory (copy.cuh), which is added
// to global memory once; corners outside the copy are added to global memory directly.
#pragma once

#include "copy.cuh"

namespace internimage::cuda {

template <typename V>
__device__ __forceinline__ void store_pair(V* to, const Sum<V> (&pair)[2], bool is_aligned) {
  if (is_aligned) return store_pack(to, pair);
  to[0] = narrow<V>(pair[0]);
  to[1] = narrow<V>(pair[1]);
}

// <sample, gradient> and its derivatives by the position.
template <typename S>
struct alignas(16) Products {
  S value, slope_x, slope_y;
  int is_inside;  // as in the cell
};

template <typename S>
struct BackwardTables {
  Rows<S> rows;
  Table<Cell<S>> cells;
  Table<Pack<S, 4>> weights;  // of the corners, with the mask in them, in units of the copy
  Table<Places> places;
  Table<S> means;

  __device__ __forceinline__ BackwardTables(const Plan& plan, int pitch, Arena& arena)
      : rows(plan, pitch, arena),
        cells(arena.take<Cell<S>>(pitch << plan.log_rows)),
        weights(arena.take<Pack<S, 4>>(pitch << plan.log_rows)),
        places(arena.take<Places>(pitch << plan.log_rows)),
        means(arena.take<S>(1 << plan.log_rows)) {}

  // The products of a processed cell replace the cell.
  __device__ __forceinline__ Table<Products<S>> products() const {
    static_assert(sizeof(Products<S>) <= sizeof(Cell<S>));
    return {reinterpret_cast<Products<S>*>(cells.data)};
  }

  static int64_t size(const Plan& plan) {
    const int64_t count = plan.pitch << plan.log_rows;
    return Rows<S>::size(plan) + table_size<Cell<S>>(count) + table_size<Pack<S, 4>>(count) +
           table_size<Places>(count) + table_size<S>(1 << plan.log_rows);
  }
};

// Shared by the warps of a block, besides the copy.
template <typename S>
int64_t backward_block_size(int points) {
  return Taps<S>::size(points) + table_size<Bounds<S>>(16) + table_size<int>(1);
}

template <typename T>
BackwardPlan make_backward_plan(const Call<T>& call, int channels_per_thread,
                                const Limits& limits) {
  return plan_backward(call, channels_per_thread, limits, backward_block_size<Sum<T>>(call.points),
                       BackwardTables<Sum<T>>::size);
}

// One chunk of rows, processed by one warp.
template <typename T, int kVector, int kPoints>
struct Chunk {
  using S = Sum<T>;

  const Call<T>& call;
  const Plan& plan;
  const Gradients<T>& gradients;
  const Block& block;
  const BackwardTables<S>& tables;
  const SharedCopy<S>& copy;

  __device__ __forceinline__ int points() const { return kPoints > 0 ? kPoints : call.points; }
  __device__ __forceinline__ int pitch() const { return kPoints > 0 ? kPoints | 1 : plan.pitch; }
  __device__ __forceinline__ unsigned shift(int corner) const {
    const unsigned right = call.channels, down = call.width * right;
    return (corner & 1 ? right : 0) + (corner & 2 ? down : 0);
  }
  // First channel of the group in a pixel of input or output.
  __device__ __forceinline__ int group_channel() const {
    return block.group * call.group_channels;
  }
  __device__ __forceinline__ int64_t first_element() const {
    return block.image * (int64_t{call.height} * call.width * call.channels) + group_channel();
  }

  // Computes cells, weights and places of all points. Returns whether a corner of this thread's
  // points is in the image but cannot be added to the copy.
  __device__ __forceinline__ bool locate(const Taps<S>& taps) const {
    bool has_far = false;
    const S unit = copy.are_floats() ? S(1) : copy.unit.weight;
    tables.rows.template locate_points<kPoints>(
        call, plan, taps, pitch(), [&](const Point<S>& point, int at) {
          const Cell<S>& cell = point.cell;
          const S weight = tables.rows.weight.get(at) * unit;
          const S bottom = weight * cell.low, top = weight * (1 - cell.low);
          const bool has_integer = copy.are_floats() || weight == weight;  // NaN has no integer
          const int here = has_integer ? cell.is_inside & copy.corners(point.y, point.x) : 0;
          has_far |= here != cell.is_inside;
          tables.cells.put(at, cell);
          tables.weights.put(at, {top * (1 - cell.right), top * cell.right,
                                  bottom * (1 - cell.right), bottom * cell.right});
          tables.places.put(at, copy.find(point.y, point.x, here));
        });
    return has_far;
  }

  // Output gradient of a row, starting at `channel`.
  template <int kCount>
  __device__ __forceinline__ void load_upstream(int64_t pixel, int channel,
                                                S (&upstream)[kCount]) const {
    const auto raw =
        load_raw<kCount>(gradients.output + pixel * call.channels + group_channel() + channel);
#pragma unroll
    for (int k = 0; k < kCount; ++k) upstream[k] = widen<T, kCount>(raw, k);
  }

  // Adds to the copy. The threads of a warp share a point: eight channels of four corners, which
  // are in different banks of shared memory.
  template <bool kIsInteger>
  __device__ __forceinline__ void scatter() const {
    const int lane = threadIdx.x & 31, corner = lane / kPlaneChannels;
    const int channel = lane % kPlaneChannels;
    const Table<S> weights{&tables.weights.data->value[corner]};
    const Table<uint16_t> places{&tables.places.data->value[corner]};
    for (int first = 0; first < call.group_channels; first += kPlanesAtOnce * kPlaneChannels) {
      S next[kPlanesAtOnce];
      const auto load = [&](int r) {
        const int64_t pixel = tables.rows.row.get(r).pixel;
#pragma unroll
        for (int i = 0; i < kPlanesAtOnce; ++i) {
          const int at = first + i * kPlaneChannels + channel;
          S value[1] = {};
          if (pixel >= 0 && at < call.group_channels) load_upstream(pixel, at, value);
          next[i] = value[0] * copy.unit.gradient;
        }
        return pixel >= 0;
      };
      bool is_next = load(0);
#pragma unroll 1
      for (int r = 0; r < 1 << plan.log_rows; ++r) {
        const bool is_row = is_next;
        S upstream[kPlanesAtOnce];
#pragma unroll
        for (int i = 0; i < kPlanesAtOnce; ++i) upstream[i] = next[i];
        if (r + 1 < 1 << plan.log_rows) is_next = load(r + 1);
        if (!is_row) continue;
        add_row<kIsInteger>(places, weights, r * pitch(), upstream, copy.address(first, channel));
      }
    }
  }

  // Adds one row. The tables of several points are read before the first addition, because the
  // compiler cannot move reads across it.
  template <bool kIsInteger>
  __device__ __forceinline__ void add_row(Table<uint16_t> places, Table<S> weights, int begin,
                                          const S (&upstream)[kPlanesAtOnce],
                                          typename Integer<S>::Type* sums) const {
    constexpr int kBatch = kIsInteger && kPoints % 3 == 0 && kPoints > 0 ? 3 : 1;
    [[maybe_unused]] constexpr int kUnroll = kIsInteger && kPoints > 0 ? kPoints / kBatch : 1;
#pragma unroll kUnroll
    for (int p = 0; p < points(); p += kBatch) {
      int place[kBatch];
      S weight[kBatch];
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        place[j] = places.get(4 * (begin + p + j));
        weight[j] = weights.get(4 * (begin + p + j));
      }
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        copy.template add<kIsInteger>(sums, place[j], upstream, weight[j]);
      }
    }
  }

  // Adds corners that cannot be added to the copy to global memory; kCount channels per thread.
  template <int kCount>
  __device__ __forceinline__ void add_far() const {
    const int lane = threadIdx.x & 31, corner = lane / 8;
    const Table<S> weights{&tables.weights.data->value[corner]};
    const Table<uint16_t> places{&tables.places.data->value[corner]};
    const S factor = 1 / copy.unit.weight;
#pragma unroll 1
    for (int r = 0; r < 1 << plan.log_rows; ++r) {
      const int64_t pixel = tables.rows.row.get(r).pixel;
      if (pixel < 0) continue;
#pragma unroll 1
      for (int p = 0; p < points(); ++p) {
        const int at = r * pitch() + p;
        const Cell<S> cell = tables.cells.get(at);
        if (copy.has(places.get(4 * at)) || !(cell.is_inside >> corner & 1)) continue;
        const S weight = weights.get(4 * at) * factor;
        const int64_t to = first_element() + cell.element + shift(corner);
        for (int c = lane % 8 * kCount; c < call.group_channels; c += 8 * kCount) {
          S parts[kCount];
          load_upstream(pixel, c, parts);
#pragma unroll
          for (int k = 0; k < kCount; ++k) parts[k] *= weight;
          add_to_memory(to + c, parts);
        }
      }
    }
  }

  // Adds to the input gradient in global memory.
  template <int kCount>
  __device__ __forceinline__ void add_to_memory(int64_t element, const S (&values)[kCount]) const {
    if (gradients.unit == nullptr) {
      add_atomically(static_cast<S*>(gradients.input) + element, values);
    } else {
      add_fixed_point(static_cast<int64_t*>(gradients.input) + element, values, *gradients.unit);
    }
  }

  // Products of all points, and the mean of their values under the weights, for each row.
  __device__ __forceinline__ void multiply() const {
    const int log_slots = min(plan.log_rows, 5 - plan.log_lanes);  // rows at once
    const int log_ways = 5 - plan.log_lanes - log_slots;           // points of a row at once
    const int thread = threadIdx.x & 31;
    const int lane = thread & ((1 << plan.log_lanes) - 1);
    const int slot = thread >> plan.log_lanes & ((1 << log_slots) - 1);
    const int way = thread >> (plan.log_lanes + log_slots);
    const int step = kVector << plan.log_lanes;
    const T* const input = call.input + first_element();
#pragma unroll 1
    for (int r = slot; r < 1 << plan.log_rows; r += 1 << log_slots) {
      const int64_t pixel = tables.rows.row.get(r).pixel;
      S mean = 0, upstream[kVector];
      const auto load = [&](int channel) {
        const bool is_active = pixel >= 0 && channel < call.group_channels;
        if (is_active) {
          load_upstream(pixel, channel, upstream);
        } else {
#pragma unroll
          for (int k = 0; k < kVector; ++k) upstream[k] = 0;
        }
        return is_active;
      };
      bool is_active = load(lane * kVector);
#pragma unroll 1
      for (int i = 0; i < points(); i += 1 << log_ways) {
        // Threads beyond the last point repeat it; their result is discarded.
        const int p = min(i + way, points() - 1), at = r * pitch() + p;
        const Cell<S> cell = tables.cells.get(at);
        Products<S> sum{0, 0, 0, cell.is_inside};
#pragma unroll 1
        for (int channel = lane * kVector; channel < call.group_channels + lane * kVector;
             channel += step) {
          if (step < call.group_channels) is_active = load(channel);
          // The fast path is taken only if all threads of the warp can take it.
          if (__all_sync(kWarp, is_active && cell.is_inside == kAllInside)) {
            add_products<true>(cell, kAllInside, upstream, input + channel, &sum);
          } else {
            add_products<false>(cell, is_active ? cell.is_inside : 0, upstream, input + channel,
                                &sum);
          }
        }
#pragma unroll 1
        for (int j = 1; j < 1 << plan.log_lanes; j *= 2) {
          sum.value += __shfl_xor_sync(kWarp, sum.value, j);
          sum.slope_x += __shfl_xor_sync(kWarp, sum.slope_x, j);
          sum.slope_y += __shfl_xor_sync(kWarp, sum.slope_y, j);
        }
        if (pixel < 0 || i + way >= points()) continue;
        mean += tables.rows.weight.get(at) * sum.value;
        if (lane == 0) tables.products().put(at, sum);
      }
#pragma unroll 1
      for (int j = 1 << (plan.log_lanes + log_slots); j < 32; j *= 2) {
        mean += __shfl_xor_sync(kWarp, mean, j);
      }
      if (lane == 0 && way == 0) tables.means.put(r, mean);
    }
  }

  // Products of one point and kVector channels.
  template <bool kAll>
  __device__ __forceinline__ void add_products(const Cell<S>& cell, int is_inside,
                                               const S (&upstream)[kVector], const T* values,
                                               Products<S>* sum) const {
    Raw<T, kVector> raw[4];
    const unsigned right = call.channels, down = call.width * right;
    load_corners<kAll, kVector>(raw, values + cell.element, is_inside, right, down);
    S dot[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      dot[c] = 0;
#pragma unroll
      for (int k = 0; k < kVector; ++k) dot[c] += widen<T, kVector>(raw[c], k) * upstream[k];
    }
    const S top = 1 - cell.low, left = 1 - cell.right;
    sum->value += top * (left * dot[0] + cell.right * dot[1]) +
                  cell.low * (left * dot[2] + cell.right * dot[3]);
    sum->slope_x += top * (dot[1] - dot[0]) + cell.low * (dot[3] - dot[2]);
    sum->slope_y += left * (dot[2] - dot[0]) + cell.right * (dot[3] - dot[1]);
  }

  // Gradients of offset and mask, from products and means.
  __device__ __forceinline__ void finish() const {
    for (int q = threadIdx.x & 31; q < points() << plan.log_rows; q += 32) {
      const int r = kPoints > 0 ? q / points() : quotient(q, plan.points), p = q - r * points();
      const int64_t pixel = tables.rows.row.get(r).pixel;
      if (pixel < 0) continue;
      const S weight = tables.rows.weight.get(r * pitch() + p);
      const Products<S> product = tables.products().get(r * pitch() + p);
      if (gradients.offset.data != nullptr) {
        const S factor = product.is_inside != 0 ? weight * call.offset_scale : 0;
        const S pair[2] = {factor * product.slope_x, factor * product.slope_y};
        const int64_t at = pixel * gradients.offset.stride +
                           block.group * gradients.offset.group + 2 * p;
        with_type<T>(gradients.offset, [&](auto* values) {
          store_pair(values + at, pair, gradients.offset.has_aligned_pairs);
        });
      }
      if (gradients.mask.data != nullptr) {
        const S value[1] = {call.mask_softmax ? weight * (product.value - tables.means.get(r))
                                              : product.value};
        const int64_t at =
            pixel * gradients.mask.stride + block.group * gradients.mask.group + p;
        with_type<T>(gradients.mask, [&](auto* values) { store_pack(values + at, value); });
      }
      if (gradients.padding > 0 && block.group == call.groups - 1) clear_padding(pixel, p);
    }
  }

  // Sets the values after the last group of a packed row to zero; every point of it takes part.
  __device__ __forceinline__ void clear_padding(int64_t pixel, int point) const {
    const int64_t at = pixel * gradients.offset.stride + call.groups * gradients.offset.group;
    with_type<T>(gradients.offset, [&](auto* values) {
      for (int i = point; i < gradients.padding; i += points()) {
        const S zero[1] = {0};
        store_pack(values + at + i, zero);
      }
    });
  }

  // Adds the copy to global memory.
  __device__ __forceinline__ void flush(const Copy& shape) const {
    if (shape.is_whole_map) {
      const bool is_hidden = copy.are_floats() && gradients.is_deterministic;
      copy.template for_each<kTogether>(
          call, plan, shape, [&](int pixel, int channel, S(&values)[kTogether]) {
#pragma unroll
            for (int k = 0; k < kTogether; ++k) {
              // Float sums depend on the order of the additions.
              if (is_hidden) values[k] = NAN;
            }
            store_pack(static_cast<T*>(gradients.input) + first_element() +
                           pixel * call.channels + channel,
                       values);
          });
    } else if (copy.height > 0) {
      copy.template for_each<kAddTogether>(
          call, plan, shape, [&](int pixel, int channel, const S(&values)[kAddTogether]) {
            bool is_zero = true;
#pragma unroll
            for (int k = 0; k < kAddTogether; ++k) is_zero &= values[k] == 0;
            if (!is_zero) add_to_memory(first_element() + pixel * call.channels + channel, values);
          });
    }
  }

  // Channels that a thread adds to global memory at once.
  static constexpr int kTogether = std::min(kVector, 4);
  static constexpr int kAddTogether = kAddsVectors ? kTogether : 1;
};

template <typename T, int kVector, int kPoints>
__global__ void __launch_bounds__(32 * kMostBackwardWarps<T>, 2)
    backward_kernel(const Call<T> call, const BackwardPlan plans, const Gradients<T> gradients) {
  using S = Sum<T>;
  extern __shared__ __align__(16) unsigned char shared_memory[];
  const Plan& plan = plans.plan;
  const Copy& shape = plans.copy;
  const Block block = locate_block(call, plan);
  if (block.image >= call.batch) return;
  Arena arena{shared_memory};
  const Taps<S> taps(call, plan, arena);
  const Table<Bounds<S>> scratch = arena.take<Bounds<S>>(kMostBackwardWarps<float>);
  const Table<int> has_no_integer = arena.take<int>(1);
  SharedCopy<S> copy(call, shape, block, arena);
  const int warp = threadIdx.x / 32;
  arena.next += warp * plan.warp_shared;
  const BackwardTables<S> tables(plan, kPoints > 0 ? kPoints | 1 : plan.pitch, arena);
  const Chunk<T, kVector, kPoints> chunk{call, plan, gradients, block, tables, copy};
  const bool wants_input = gradients.input != nullptr;
  const bool wants_sides = gradients.offset.data != nullptr || gradients.mask.data != nullptr;

  if (wants_input && shape.height > 0) {
    copy.unit = choose_unit(measure<kVector>(call, plan, block, gradients.output, scratch));
    if (copy.are_floats() && !shape.is_whole_map) copy.forgo();
  }
  while (true) {
    if (threadIdx.x == 0) has_no_integer.put(0, 0);
    if (wants_input) copy.clear(plan, shape);
    __syncthreads();
    for (int first = warp << plan.log_rows; first < block.rows;
         first += plan.warps << plan.log_rows) {
      tables.rows.template fill<kPoints>(call, plan, block, first, chunk.pitch());
      __syncwarp();
      const bool has_far = __any_sync(kWarp, chunk.locate(taps) && wants_input);
      __syncwarp();
      if (wants_input && copy.height > 0) {
        if (copy.are_floats()) {
          chunk.template scatter<false>();
        } else {
          chunk.template scatter<true>();
        }
      }
      if (has_far) {
        if (shape.is_whole_map) {
          if (threadIdx.x % 32 == 0) atomicOr(has_no_integer.data, 1);
        } else {
          chunk.template add_far<Chunk<T, kVector, kPoints>::kAddTogether>();
        }
      }
      if (wants_sides) {
        __syncwarp();
        chunk.multiply();
        __syncwarp();
        chunk.finish();
      }
      __syncwarp();
    }
    __syncthreads();
    if (!wants_input || !shape.is_whole_map || copy.are_floats()) break;
    if (!has_no_integer.get(0)) break;
    // Repeat with float sums if weights are not finite.
    __syncthreads();
    copy.unit = {1, 0};
  }
  if (wants_input) chunk.flush(shape);
}

}  // namespace internimage::cuda
