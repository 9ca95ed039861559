// How the threads share experts: parts of the token slots, and what they add in one order. Shapes and formulas: expert_loops.py.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <numeric>
#include <utility>
#include <vector>

namespace {

using at::Tensor;

// Rows of one product: more fall out of the caches, fewer are slow. Parts of an expert at most: each has a gradient of the weights of its own until it is added.
constexpr int64_t ROWS = 1024, FEWEST = 128, PARTS = 4;

// Call `body` on so many of PyTorch's threads, fewer where they are taken.
template <typename Body>
void on_threads(int64_t count, const Body& body) {
  if (count == 1) {
    body();
    return;
  }
  const auto places = at::empty({count}, at::kByte);
  auto iter = at::TensorIteratorConfig().add_const_input(places).set_check_mem_overlap(false).build();
  iter.for_each([&](char**, const int64_t*, int64_t) { body(); }, /*grain_size=*/1);
}

// Rows of an expert that one thread takes; `whole`: all of them.
struct Part {
  int64_t expert, start, rows;
  bool whole;
};

// Experts with tokens, in parts where one has half as much again as a thread's share; those with the most first: neighbours take as long.
std::vector<Part> parts_of(at::IntArrayRef counts) {
  const int64_t all = std::accumulate(counts.begin(), counts.end(), int64_t{0}), threads = at::get_num_threads();
  const int64_t largest = counts.empty() ? 0 : *std::max_element(counts.begin(), counts.end());
  const int64_t most = threads > 1 && 2 * largest * threads > 3 * all ? std::max(FEWEST, all / (2 * threads)) : all;
  std::vector<Part> found;
  int64_t start = 0;
  for (size_t expert = 0; expert < counts.size(); expert++) {
    const int64_t rows = counts[expert], number = most ? std::min(PARTS, (rows + most - 1) / most) : 0;
    for (int64_t part = 0; part < number; part++) {
      const int64_t from = rows * part / number, to = rows * (part + 1) / number;
      found.push_back({static_cast<int64_t>(expert), start + from, to - from, number == 1});
    }
    start += rows;
  }
  std::stable_sort(found.begin(), found.end(), [](const Part& a, const Part& b) { return a.rows > b.rows; });
  return found;
}

// What a part adds: to its tokens' rows, and to the gradients of its expert's weights where these have other parts too.
struct Found {
  Tensor rows, gate_up, down;
};

// What parts add, in their order, one at a time: whoever finishes the next one adds it and those that were ready and waited for it, while other threads go on.
class Additions {
 public:
  explicit Additions(size_t most) : most(most) {}

  // Wait until there is room for what another part finds; false when there is no further one, or one has failed.
  bool next(size_t parts, size_t& place) {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [&] { return taken - added < most || taken == parts || failed; });
    if (failed || taken == parts) return false;
    place = taken++;
    return true;
  }
  template <typename Add>
  void ready(size_t place, Found found, const Add& add) {
    std::unique_lock<std::mutex> lock(mutex);
    waiting.emplace(place, std::move(found));
    if (adding) return;
    adding = true;
    for (auto first = waiting.find(added); first != waiting.end() && !failed; first = waiting.find(added)) {
      const auto own = std::move(first->second);
      waiting.erase(first);
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
  std::map<size_t, Found> waiting;
  size_t taken = 0, added = 0;
  bool adding = false, failed = false;
};

// Call `work(part, found, own)` for every part, then `add(part, found)` in their order; `found.rows` are what it adds to its tokens', `own` is made by
// `room(rows of one product)`, once for a thread.
template <typename Room, typename Work, typename Add>
void of_parts(
    const std::vector<Part>& parts, int64_t width, const at::TensorOptions& options, const Room& room, const Work& work, const Add& add) {
  if (parts.empty()) return;
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), parts.size());
  Additions additions(2 * threads);
  const auto worker = [&] {
    const c10::impl::ExcludeDispatchKeyGuard plain(c10::autograd_dispatch_keyset);
    const c10::impl::ExcludeDispatchKeyGuard views(c10::DispatchKey::ADInplaceOrView);
    try {
      auto own = room(std::min(parts.front().rows, ROWS));
      for (size_t place; additions.next(parts.size(), place);) {
        Found found{at::empty({parts[place].rows, width}, options), Tensor(), Tensor()};
        work(parts[place], found, own);
        additions.ready(place, std::move(found), [&](size_t at, const Found& other) { add(parts[at], other); });
      }
    } catch (...) {
      additions.fail();
      throw;
    }
  };
  on_threads(threads, worker);
}

}  // namespace
