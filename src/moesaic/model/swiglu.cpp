// What is no product in SwiGLU experts, one loop each way; shapes, formulas and the same by PyTorch's operators: swiglu.py. Rows are shared among
// PyTorch's own threads by TensorIterator: an OpenMP of this file's own would be a second set of threads.
#include <ATen/Dispatch.h>
#include <ATen/TensorIterator.h>
#include <ATen/core/Tensor.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

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

// Call `row(index, weight)` for every weight, on all threads.
template <typename scalar, typename Row>
void of_rows(const at::Tensor& weight, const Row& row) {
  auto iter = at::TensorIteratorConfig().add_const_input(weight).set_check_mem_overlap(false).build();
  const auto* first = weight.const_data_ptr<scalar>();
  iter.for_each(
      [&](char** data, const int64_t* strides, int64_t count) {
        for (int64_t at = 0; at < count; at++) {
          const auto* own = reinterpret_cast<const scalar*>(data[0] + at * strides[0]);
          row(own - first, *own);
        }
      },
      /*grain_size=*/128);
}

template <typename scalar>
void inner(const at::Tensor& both, const at::Tensor& weight, at::Tensor& h) {
  const int64_t neurons = h.size(1), lanes = Vec<scalar>::size();
  const auto* first = both.const_data_ptr<scalar>();
  auto* out = h.data_ptr<scalar>();
  of_rows<scalar>(weight, [=](int64_t slot, scalar w) {
    const auto *gate = first + 2 * slot * neurons, *up = gate + neurons;
    for (int64_t m = 0; m < neurons; m += lanes) {
      const int count = static_cast<int>(std::min(lanes, neurons - m));
      const auto g = Vec<scalar>::loadu(gate + m, count), u = Vec<scalar>::loadu(up + m, count);
      (g * sigmoid(g) * u * Vec<scalar>(w)).store(out + slot * neurons + m, count);
    }
  });
}

template <typename scalar>
void gradients(const at::Tensor& both, const at::Tensor& weight, const at::Tensor& d, at::Tensor& grad, at::Tensor& grad_weight) {
  const int64_t neurons = d.size(1), lanes = Vec<scalar>::size();
  const auto *first = both.const_data_ptr<scalar>(), *slopes = d.const_data_ptr<scalar>();
  auto *out = grad.data_ptr<scalar>(), *out_weight = grad_weight.data_ptr<scalar>();
  of_rows<scalar>(weight, [=](int64_t slot, scalar w) {
    const auto *gate = first + 2 * slot * neurons, *up = gate + neurons;
    auto *to_gate = out + 2 * slot * neurons, *to_up = to_gate + neurons;
    Vec<scalar> sum(0);
    for (int64_t m = 0; m < neurons; m += lanes) {
      const int count = static_cast<int>(std::min(lanes, neurons - m));  // lanes beyond it hold zeros
      const auto g = Vec<scalar>::loadu(gate + m, count), u = Vec<scalar>::loadu(up + m, count);
      const auto slope = Vec<scalar>::loadu(slopes + slot * neurons + m, count);
      const auto s = sigmoid(g), active = g * s, weighted = slope * Vec<scalar>(w);
      sum = sum + slope * active * u;
      (weighted * u * s * (Vec<scalar>(1) + g * (Vec<scalar>(1) - s))).store(to_gate + m, count);
      (weighted * active).store(to_up + m, count);
    }
    scalar parts[Vec<scalar>::size()], total = 0;
    sum.store(parts);
    for (scalar part : parts) total += part;
    out_weight[slot] = total;
  });
}

}  // namespace

TORCH_LIBRARY(moesaic_swiglu, m) {
  m.def("inner(Tensor both, Tensor weight) -> Tensor");
  m.def("gradients(Tensor both, Tensor weight, Tensor d) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(moesaic_swiglu, CPU, m) {
  m.impl("inner", [](const at::Tensor& both, const at::Tensor& weight) {
    auto h = at::empty({both.size(0), both.size(1) / 2}, both.options());
    AT_DISPATCH_FLOATING_TYPES(both.scalar_type(), "inner", [&] { inner<scalar_t>(both, weight, h); });
    return h;
  });
  m.impl("gradients", [](const at::Tensor& both, const at::Tensor& weight, const at::Tensor& d) {
    auto grad = at::empty_like(both), grad_weight = at::empty_like(weight);
    AT_DISPATCH_FLOATING_TYPES(both.scalar_type(), "gradients", [&] { gradients<scalar_t>(both, weight, d, grad, grad_weight); });
    return std::make_tuple(grad, grad_weight);
  });
}
