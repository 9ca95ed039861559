// SwiGLU experts, all that happens between sorting the token slots and the layer's output or gradients. Shapes, formulas and the same by PyTorch's
// operators: expert_loops.py.
//
// An expert is one thread's work where no expert has more rows than a thread's share of them, else all threads share each product. What an expert adds to its
// tokens' rows waits for the experts before it: sums have one order, whatever the number of threads. Threads are PyTorch's own, by way of
// TensorIterator: an OpenMP of this file's own would be a second set of threads, in which each product would start a third.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>
#include <ATen/core/Tensor.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <numeric>
#include <tuple>
#include <utility>
#include <vector>

namespace {

using at::Tensor;

// Rows of one product: more fall out of the caches.
constexpr int64_t ROWS = 1024;

template <typename scalar>
using Vec = at::vec::Vectorized<scalar>;

Vec<float> exponential(Vec<float> x) { return x.exp_u20(); }
Vec<double> exponential(Vec<double> x) { return x.exp(); }

template <typename scalar>
Vec<scalar> sigmoid(Vec<scalar> x) {
  const Vec<scalar> one(1);
  return one / (one + exponential(x.neg()));
}

// Call `body(from, to)` for parts of 0 to `count` on all threads, or here alone when this is one of them already.
template <typename Body>
void shared(int64_t count, int64_t grain, const Body& body) {
  if (count == 0) return;
  if (count <= grain || at::in_parallel_region() || at::get_num_threads() == 1) {
    body(int64_t{0}, count);
    return;
  }
  const auto places = at::arange(count, at::kLong);
  const auto* first = places.const_data_ptr<int64_t>();
  auto iter = at::TensorIteratorConfig().add_const_input(places).set_check_mem_overlap(false).build();
  iter.for_each(
      [&](char** data, const int64_t*, int64_t own) {
        const int64_t from = reinterpret_cast<const int64_t*>(data[0]) - first;
        body(from, from + own);
      },
      grain);
}

struct Expert {
  int64_t index, start, rows;
};

// Experts with tokens, those with the most first: neighbours take as long.
std::vector<Expert> busy(at::IntArrayRef counts) {
  std::vector<Expert> found;
  int64_t start = 0;
  for (size_t index = 0; index < counts.size(); index++) {
    if (counts[index] > 0) found.push_back({static_cast<int64_t>(index), start, counts[index]});
    start += counts[index];
  }
  std::stable_sort(found.begin(), found.end(), [](const Expert& a, const Expert& b) { return a.rows > b.rows; });
  return found;
}

// What experts add to their tokens' rows, in the experts' order, one at a time: whoever finishes the next one in order adds it and those that were ready and
// waited for it, while other threads go on.
class Additions {
 public:
  explicit Additions(size_t most) : most(most) {}

  // Wait until there is room for another expert's rows; false when there is no further expert, or one has failed.
  bool next(size_t experts, size_t& place) {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [&] { return taken - added < most || taken == experts || failed; });
    if (failed || taken == experts) return false;
    place = taken++;
    return true;
  }
  template <typename Add>
  void ready(size_t place, Tensor rows, const Add& add) {
    std::unique_lock<std::mutex> lock(mutex);
    waiting.emplace(place, std::move(rows));
    if (adding) return;
    adding = true;
    for (auto found = waiting.find(added); found != waiting.end() && !failed; found = waiting.find(added)) {
      const auto own = std::move(found->second);
      waiting.erase(found);
      lock.unlock();
      add(added, own);
      lock.lock();
      added++;
      changed.notify_all();
    }
    adding = false;
  }
  void fail() {
    const std::lock_guard<std::mutex> lock(mutex);
    failed = true;
    changed.notify_all();
  }

 private:
  const size_t most;
  std::mutex mutex;
  std::condition_variable changed;
  std::map<size_t, Tensor> waiting;
  size_t taken = 0, added = 0;
  bool adding = false, failed = false;
};

// Call `work(expert, rows, own)` for every expert with tokens, then `add(expert, rows)` in their order; `rows` is what it adds, `own` is made by
// `room(rows of the largest)`, once for a thread.
template <typename Room, typename Work, typename Add>
void of_experts(at::IntArrayRef counts, int64_t width, const at::TensorOptions& options, const Room& room, const Work& work, const Add& add) {
  const auto experts = busy(counts);
  if (experts.empty()) return;
  const int64_t largest = experts.front().rows, all = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  const int64_t threads = largest * at::get_num_threads() <= all ? at::get_num_threads() : 1;
  Additions additions(2 * threads);
  const auto worker = [&](int64_t, int64_t) {
    const c10::impl::ExcludeDispatchKeyGuard plain(c10::autograd_dispatch_keyset);
    const c10::impl::ExcludeDispatchKeyGuard views(c10::DispatchKey::ADInplaceOrView);
    try {
      auto own = room(std::min(largest, ROWS));
      for (size_t place; additions.next(experts.size(), place);) {
        auto rows = at::empty({experts[place].rows, width}, options);
        work(experts[place], rows, own);
        additions.ready(place, std::move(rows), [&](size_t at, const Tensor& found) { add(experts[at], found); });
      }
    } catch (...) {
      additions.fail();
      throw;
    }
  };
  if (threads > 1) {
    shared(threads, 1, worker);
  } else {
    worker(0, 1);
  }
}

template <typename scalar>
void gather(const Tensor& from, const int32_t* token, Tensor& to) {
  const int64_t width = from.size(1);
  const auto* source = from.const_data_ptr<scalar>();
  auto* target = to.data_ptr<scalar>();
  shared(to.size(0), 128, [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
      std::memcpy(target + row * width, source + token[row] * width, width * sizeof(scalar));
    }
  });
}

template <typename scalar>
void scatter(const scalar* from, const int32_t* token, int64_t rows, Tensor& to) {
  const int64_t width = to.size(1);
  auto* target = to.data_ptr<scalar>();
  shared(rows, 128, [=](int64_t begin, int64_t end) {  // a token is among an expert's once: no two threads have the same row
    for (int64_t row = begin; row < end; row++) {
      const auto* source = from + row * width;
      auto* sum = target + token[row] * width;
      for (int64_t d = 0; d < width; d++) sum[d] += source[d];
    }
  });
}

// w h of some rows of the first product.
template <typename scalar>
void inner(const scalar* both, const scalar* weight, int64_t rows, int64_t neurons, scalar* out) {
  const int64_t lanes = Vec<scalar>::size();
  shared(rows, 128, [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
      const auto *gate = both + 2 * row * neurons, *up = gate + neurons;
      const Vec<scalar> w(weight[row]);
      for (int64_t m = 0; m < neurons; m += lanes) {
        const int count = static_cast<int>(std::min(lanes, neurons - m));
        const auto g = Vec<scalar>::loadu(gate + m, count), u = Vec<scalar>::loadu(up + m, count);
        (g * sigmoid(g) * u * w).store(out + row * neurons + m, count);
      }
    }
  });
}

// Of the first product, the weights and d: w h, the gradients of the first product and of the weights.
template <typename scalar>
void gradients(
    const scalar* both, const scalar* weight, const scalar* d, int64_t rows, int64_t neurons, scalar* weighted, scalar* grad, scalar* grad_weight) {
  const int64_t lanes = Vec<scalar>::size();
  shared(rows, 128, [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
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
  });
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
  of_experts(
      counts, width, x.options(), [&](int64_t most) { return at::empty({most, neurons}, x.options()); },
      [&](const Expert& expert, const Tensor& rows_of_all, Tensor& own) {
        const auto into = gate_up.select(0, expert.index).t(), back = down.select(0, expert.index).t();
        for (int64_t at = 0; at < expert.rows; at += ROWS) {
          const int64_t count = std::min(ROWS, expert.rows - at), slot = expert.start + at;
          auto rows = rows_of_all.narrow(0, at, count), found = both.narrow(0, slot, count), h = own.narrow(0, 0, count);
          gather<scalar>(x, tokens + slot, rows);
          at::mm_out(found, rows, into);
          inner(found.const_data_ptr<scalar>(), weights + slot, count, neurons, h.data_ptr<scalar>());
          at::mm_out(rows, h, back);
        }
      },
      [&](const Expert& expert, const Tensor& rows) {
        scatter(rows.const_data_ptr<scalar>(), tokens + expert.start, expert.rows, out);
      });
  return {out, both};
}

template <typename scalar>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad, const Tensor& x, const Tensor& gate_up, const Tensor& down, const Tensor& weight, const Tensor& token,
    at::IntArrayRef counts, const Tensor& both, bool wants_x, bool wants_gate_up, bool wants_down) {
  const int64_t width = x.size(1), neurons = down.size(2);
  auto grad_x = wants_x ? at::zeros_like(x) : Tensor(), grad_gate_up = wants_gate_up ? at::empty_like(gate_up) : Tensor(),
       grad_down = wants_down ? at::empty_like(down) : Tensor();
  auto grad_weight = at::empty_like(weight);
  for (size_t index = 0; index < counts.size(); index++) {
    if (counts[index]) continue;
    if (wants_gate_up) grad_gate_up.select(0, index).zero_();
    if (wants_down) grad_down.select(0, index).zero_();
  }
  const auto* tokens = token.const_data_ptr<int32_t>();
  const auto* weights = weight.const_data_ptr<scalar>();
  const auto* products = both.const_data_ptr<scalar>();
  auto* slopes = grad_weight.data_ptr<scalar>();
  of_experts(
      counts, width, x.options(),
      [&](int64_t most) {
        return Back{
            at::empty({most, neurons}, x.options()), at::empty({most, neurons}, x.options()), at::empty({most, 2 * neurons}, x.options())};
      },
      [&](const Expert& expert, const Tensor& rows_of_all, Back& own) {
        const auto into = gate_up.select(0, expert.index), back = down.select(0, expert.index);
        for (int64_t at = 0; at < expert.rows; at += ROWS) {
          const int64_t count = std::min(ROWS, expert.rows - at), slot = expert.start + at;
          auto rows = rows_of_all.narrow(0, at, count), d = own.d.narrow(0, 0, count), weighted = own.weighted.narrow(0, 0, count),
               grad_both = own.grad.narrow(0, 0, count);
          gather<scalar>(grad, tokens + slot, rows);
          at::mm_out(d, rows, back);  // still without the weight
          gradients(
              products + 2 * slot * neurons, weights + slot, d.const_data_ptr<scalar>(), count, neurons, weighted.data_ptr<scalar>(),
              grad_both.data_ptr<scalar>(), slopes + slot);
          if (wants_down) accumulate(grad_down.select(0, expert.index), rows.t(), weighted, at == 0);
          if (wants_gate_up) {
            gather<scalar>(x, tokens + slot, rows);
            accumulate(grad_gate_up.select(0, expert.index), grad_both.t(), rows, at == 0);
          }
          if (wants_x) at::mm_out(rows, grad_both, into);
        }
      },
      [&](const Expert& expert, const Tensor& rows) {
        if (wants_x) scatter(rows.const_data_ptr<scalar>(), tokens + expert.start, expert.rows, grad_x);
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
