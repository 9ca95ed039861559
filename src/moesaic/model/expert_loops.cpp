// SwiGLU experts, all that happens between sorting the token slots and the layer's output or gradients. Shapes, formulas and the same by PyTorch's
// operators: expert_loops.py.
//
// An expert, or where one has more rows than a thread's share of them a part of its rows, is one thread's work. What it adds waits for those before it: sums
// have one order, whoever is early (expert_parts.h). Threads are PyTorch's own, by way of TensorIterator: an OpenMP of this file's own would be a second set
// of threads, in which each product would start a third.
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include "expert_parts.h"

#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

namespace {

template <typename scalar>
using Vec = at::vec::Vectorized<scalar>;

Vec<float> exponential(Vec<float> x) { return x.exp_u20(); }
Vec<double> exponential(Vec<double> x) { return x.exp(); }

template <typename scalar>
Vec<scalar> sigmoid(Vec<scalar> x) {
  const Vec<scalar> one(1);
  return one / (one + exponential(x.neg()));
}

template <typename scalar>
void gather(const Tensor& from, const int32_t* token, Tensor& to) {
  const int64_t width = from.size(1);
  const auto* source = from.const_data_ptr<scalar>();
  auto* target = to.data_ptr<scalar>();
  for (int64_t row = 0; row < to.size(0); row++) {
    std::memcpy(target + row * width, source + token[row] * width, width * sizeof(scalar));
  }
}

template <typename scalar>
void scatter(const Tensor& from, const int32_t* token, Tensor& to) {
  const int64_t width = to.size(1);
  const auto* first = from.const_data_ptr<scalar>();
  auto* target = to.data_ptr<scalar>();
  for (int64_t row = 0; row < from.size(0); row++) {
    const auto* source = first + row * width;
    auto* sum = target + token[row] * width;
    for (int64_t d = 0; d < width; d++) sum[d] += source[d];
  }
}

// w h of some rows of the first product.
template <typename scalar>
void inner(const scalar* both, const scalar* weight, int64_t rows, int64_t neurons, scalar* out) {
  const int64_t lanes = Vec<scalar>::size();
  for (int64_t row = 0; row < rows; row++) {
    const auto *gate = both + 2 * row * neurons, *up = gate + neurons;
    const Vec<scalar> w(weight[row]);
    for (int64_t m = 0; m < neurons; m += lanes) {
      const int count = static_cast<int>(std::min(lanes, neurons - m));
      const auto g = Vec<scalar>::loadu(gate + m, count), u = Vec<scalar>::loadu(up + m, count);
      (g * sigmoid(g) * u * w).store(out + row * neurons + m, count);
    }
  }
}

// Of the first product, the weights and d: w h, the gradients of the first product and of the weights.
template <typename scalar>
void gradients(
    const scalar* both, const scalar* weight, const scalar* d, int64_t rows, int64_t neurons, scalar* weighted, scalar* grad, scalar* grad_weight) {
  const int64_t lanes = Vec<scalar>::size();
  for (int64_t row = 0; row < rows; row++) {
    const auto *gate = both + 2 * row * neurons, *up = gate + neurons, *slopes = d + row * neurons;
    auto *to_gate = grad + 2 * row * neurons, *to_up = to_gate + neurons, *to_h = weighted + row * neurons;
    const Vec<scalar> w(weight[row]), one(1);
    Vec<scalar> sum(0);
    for (int64_t m = 0; m < neurons; m += lanes) {
      const int count = static_cast<int>(std::min(lanes, neurons - m));  // lanes beyond it hold zeros
      const auto g = Vec<scalar>::loadu(gate + m, count), u = Vec<scalar>::loadu(up + m, count);
      const auto slope = Vec<scalar>::loadu(slopes + m, count);
      const auto s = sigmoid(g), active = g * s, h = active * u, steep = slope * w;
      sum = sum + slope * h;
      (h * w).store(to_h + m, count);
      (steep * u * s * (one + g * (one - s))).store(to_gate + m, count);
      (steep * active).store(to_up + m, count);
    }
    scalar parts[Vec<scalar>::size()], total = 0;
    sum.store(parts);
    for (scalar part : parts) total += part;
    grad_weight[row] = total;
  }
}

// A weight's gradient from a part of its rows; the first part finds no sum yet.
void accumulate(Tensor to, const Tensor& left, const Tensor& right, bool first) {
  if (first) {
    at::mm_out(to, left, right);
  } else {
    at::addmm_out(to, to, left, right);
  }
}

// Buffers of a thread.
struct Back {
  Tensor d, weighted, grad;
};

template <typename scalar>
std::tuple<Tensor, Tensor> forward(
    const Tensor& x, const Tensor& gate_up, const Tensor& down, const Tensor& weight, const Tensor& token, at::IntArrayRef counts) {
  const int64_t width = x.size(1), neurons = down.size(2);
  auto out = at::zeros_like(x), both = at::empty({token.size(0), 2 * neurons}, x.options());
  const auto* tokens = token.const_data_ptr<int32_t>();
  const auto* weights = weight.const_data_ptr<scalar>();
  of_parts(
      parts_of(counts), width, x.options(), [&](int64_t most) { return at::empty({most, neurons}, x.options()); },
      [&](const Part& part, Found& found, Tensor& own) {
        const auto into = gate_up.select(0, part.expert).t(), back = down.select(0, part.expert).t();
        for (int64_t at = 0; at < part.rows; at += ROWS) {
          const int64_t count = std::min(ROWS, part.rows - at), slot = part.start + at;
          auto rows = found.rows.narrow(0, at, count), product = both.narrow(0, slot, count), h = own.narrow(0, 0, count);
          gather<scalar>(x, tokens + slot, rows);
          at::mm_out(product, rows, into);
          inner(product.const_data_ptr<scalar>(), weights + slot, count, neurons, h.data_ptr<scalar>());
          at::mm_out(rows, h, back);
        }
      },
      [&](const Part& part, const Found& found) { scatter<scalar>(found.rows, tokens + part.start, out); });
  return {out, both};
}

template <typename scalar>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad, const Tensor& x, const Tensor& gate_up, const Tensor& down, const Tensor& weight, const Tensor& token,
    at::IntArrayRef counts, const Tensor& both, bool wants_x, bool wants_gate_up, bool wants_down) {
  const int64_t width = x.size(1), neurons = down.size(2);
  const auto parts = parts_of(counts);
  auto grad_x = wants_x ? at::zeros_like(x) : Tensor(), grad_gate_up = wants_gate_up ? at::empty_like(gate_up) : Tensor(),
       grad_down = wants_down ? at::empty_like(down) : Tensor();
  auto grad_weight = at::empty_like(weight);
  std::vector<bool> written(counts.size(), false);
  for (const auto& part : parts) written[part.expert] = part.whole;
  for (size_t expert = 0; expert < counts.size(); expert++) {
    if (written[expert]) continue;  // else a sum, of parts or of nothing
    if (wants_gate_up) grad_gate_up.select(0, expert).zero_();
    if (wants_down) grad_down.select(0, expert).zero_();
  }
  const auto* tokens = token.const_data_ptr<int32_t>();
  const auto* weights = weight.const_data_ptr<scalar>();
  const auto* products = both.const_data_ptr<scalar>();
  auto* slopes = grad_weight.data_ptr<scalar>();
  of_parts(
      parts, width, x.options(),
      [&](int64_t most) {
        return Back{
            at::empty({most, neurons}, x.options()), at::empty({most, neurons}, x.options()), at::empty({most, 2 * neurons}, x.options())};
      },
      [&](const Part& part, Found& found, Back& own) {
        const auto into = gate_up.select(0, part.expert), back = down.select(0, part.expert);
        if (wants_gate_up) found.gate_up = part.whole ? grad_gate_up.select(0, part.expert) : at::empty_like(into);
        if (wants_down) found.down = part.whole ? grad_down.select(0, part.expert) : at::empty_like(back);
        for (int64_t at = 0; at < part.rows; at += ROWS) {
          const int64_t count = std::min(ROWS, part.rows - at), slot = part.start + at;
          auto rows = found.rows.narrow(0, at, count), d = own.d.narrow(0, 0, count), weighted = own.weighted.narrow(0, 0, count),
               grad_both = own.grad.narrow(0, 0, count);
          gather<scalar>(grad, tokens + slot, rows);
          at::mm_out(d, rows, back);  // still without the weight
          gradients(
              products + 2 * slot * neurons, weights + slot, d.const_data_ptr<scalar>(), count, neurons, weighted.data_ptr<scalar>(),
              grad_both.data_ptr<scalar>(), slopes + slot);
          if (wants_down) accumulate(found.down, rows.t(), weighted, at == 0);
          if (wants_gate_up) {
            gather<scalar>(x, tokens + slot, rows);
            accumulate(found.gate_up, grad_both.t(), rows, at == 0);
          }
          if (wants_x) at::mm_out(rows, grad_both, into);
        }
      },
      [&](const Part& part, const Found& found) {
        if (wants_x) scatter<scalar>(found.rows, tokens + part.start, grad_x);
        if (part.whole) return;
        if (wants_gate_up) grad_gate_up.select(0, part.expert).add_(found.gate_up);
        if (wants_down) grad_down.select(0, part.expert).add_(found.down);
      });
  return {grad_x, grad_gate_up, grad_down, grad_weight};
}

}  // namespace

TORCH_LIBRARY(moesaic_experts, m) {
  m.def("forward(Tensor x, Tensor gate_up, Tensor down, Tensor weight, Tensor token, int[] counts) -> (Tensor, Tensor)");
  m.def(
      "backward(Tensor grad, Tensor x, Tensor gate_up, Tensor down, Tensor weight, Tensor token, int[] counts, Tensor both, "
      "bool wants_x, bool wants_gate_up, bool wants_down) -> (Tensor?, Tensor?, Tensor?, Tensor)");
}

TORCH_LIBRARY_IMPL(moesaic_experts, CPU, m) {
  m.impl(
      "forward",
      [](const Tensor& x, const Tensor& gate_up, const Tensor& down, const Tensor& weight, const Tensor& token, at::IntArrayRef counts) {
        return AT_DISPATCH_FLOATING_TYPES(
            x.scalar_type(), "forward", [&] { return forward<scalar_t>(x.contiguous(), gate_up, down, weight, token, counts); });
      });
  m.impl(
      "backward",
      [](const Tensor& grad, const Tensor& x, const Tensor& gate_up, const Tensor& down, const Tensor& weight, const Tensor& token,
         at::IntArrayRef counts, const Tensor& both, bool wants_x, bool wants_gate_up, bool wants_down) {
        using Maybe = std::optional<Tensor>;
        const auto found = AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "backward", [&] {
          return backward<scalar_t>(
              grad.contiguous(), x.contiguous(), gate_up, down, weight, token, counts, both, wants_x, wants_gate_up, wants_down);
        });
        const auto maybe = [](const Tensor& tensor) { return tensor.defined() ? Maybe(tensor) : Maybe(); };
        return std::make_tuple(maybe(std::get<0>(found)), maybe(std::get<1>(found)), maybe(std::get<2>(found)), std::get<3>(found));
      });
}
