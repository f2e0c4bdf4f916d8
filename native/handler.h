// What XLA's handlers share.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "cpu.h"
#include "kernels.h"
#include "xla/ffi/api/ffi.h"

namespace jaxpool {

namespace ffi = xla::ffi;

inline bool is_float(ffi::DataType dtype) { return dtype == ffi::F32 || dtype == ffi::BF16; }

// Of the operands of a kernel.
enum DTypes { kFloat32 = 1, kBFloat16 = 2, kInt8 = 4, kFloats = kFloat32 | kBFloat16, kAll = kFloats | kInt8 };

// An instruction set's kernel, and what it takes.
template <class Kernel>
struct Choice {
  std::string_view name;
  bool (*here)();
  Kernel kernel;
  int takes;               // of DTypes
  int64_t least_rows = 0;  // for fewer there is a better one
};

// The names of those that this CPU can run.
template <class Kernel, size_t Count>
inline std::vector<std::string_view> names(const Choice<Kernel> (&choices)[Count], DTypes dtype) {
  std::vector<std::string_view> found;
  for (const auto& choice : choices) {
    if ((choice.takes & dtype) && choice.here()) found.push_back(choice.name);
  }
  return found;
}

// The best for so many rows, or (by another name than "auto") the one of that name; null if there is none.
template <class Kernel, size_t Count>
inline Kernel choose(const Choice<Kernel> (&choices)[Count], std::string_view name, ffi::DataType dtype,
                     int64_t rows = 0) {
  const DTypes own = dtype == ffi::F32 ? kFloat32 : dtype == ffi::BF16 ? kBFloat16 : kInt8;
  for (const auto& choice : choices) {
    const bool wanted = name == choice.name || (name == "auto" && rows >= choice.least_rows);
    if (wanted && (choice.takes & own) && choice.here()) return choice.kernel;
  }
  return nullptr;
}

// What XLA calls, and the names of the instruction sets that it can choose from, best first.
struct Target {
  const char* name;
  XLA_FFI_Handler* handler;
  std::vector<std::string_view> (*kernels)(DTypes);
};

Target attention();
Target norm();
Target product();
Target quantise();

// One of the calls that are computed at this moment, each on a thread outside XLA's pool.
class Call {
 public:
  Call() { ++count_; }
  ~Call() { --count_; }
  Call(const Call&) = delete;
  static int64_t count() { return count_; }

 private:
  inline static std::atomic<int64_t> count_ = 0;
};

// Those that a call may use: with a stream on each core they would only wait for each other.
inline int64_t free_cores(const ffi::ThreadPool& pool) {
  return std::max<int64_t>(1, pool.num_threads() - Call::count());
}

// Runs item(0) … item(count - 1) on this thread, and on as many of the pool as there are free cores. False if an item
// threw.
template <class Item>
inline bool share_out(ffi::ThreadPool& pool, int64_t count, Item item) {
  struct Progress {
    std::atomic<int64_t> next = 0, done = 0;
    std::atomic<bool> failed = false;
  };
  auto progress = std::make_shared<Progress>();
  // A thread that comes late finds nothing left to take, and touches nothing of this call but `progress`.
  auto work = [progress, count, item] {
    for (int64_t number; (number = progress->next++) < count;) {
      try {
        item(number);
      } catch (...) {
        progress->failed = true;
      }
      if (++progress->done == count) progress->done.notify_all();
    }
  };
  const int64_t cores = free_cores(pool);
  const Call call;
  for (int64_t helper = 1; helper < count && helper < cores; ++helper) {
    auto copy = work;
    pool.Schedule(std::move(copy));
  }
  work();
  for (int64_t done; (done = progress->done) < count;) progress->done.wait(done);
  return !progress->failed;
}

// `share_out` as a handler's answer.
template <class Item>
inline ffi::Error answer(ffi::ThreadPool& pool, int64_t count, Item item) {
  if (share_out(pool, count, item)) return ffi::Error::Success();
  return ffi::Error(ffi::ErrorCode::kResourceExhausted, "out of memory");
}

// Runs piece(first row, rows), as many rows at a time as are worth another thread.
constexpr int64_t kRowsAThread = 64;

template <class Piece>
inline ffi::Error by_rows(ffi::ThreadPool& pool, int64_t rows, Piece piece) {
  return answer(pool, (rows + kRowsAThread - 1) / kRowsAThread, [rows, piece](int64_t number) {
    piece(number * kRowsAThread, std::min(kRowsAThread, rows - number * kRowsAThread));
  });
}

}  // namespace jaxpool
