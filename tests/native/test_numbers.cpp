// Right numbers where there is a GPU, a clear error where there is none.
//   test_numbers         whichever of the two this machine calls for
//   test_numbers --gpu   there must be one (the fake driver's)
//   test_numbers --none  there must be none
#include <dlfcn.h>

#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "device.h"
#include "fake_driver.h"
#include "numbers.h"
#include "sample.h"

namespace {

constexpr int SKIPPED = 77;
constexpr uint16_t POISON = 0x7FFF;  // NaN in both types

struct Source {
  int length;
  bool shared;
};

struct Case {
  const char* name;
  int groups, frames, tokens, heads;
  std::vector<Source> sources;
  double q_size = 1.0;  // standard deviation of the queries
  int padding = 0;      // elements between rows
  bool equal_keys = false;
  double one_key = 0.0;  // key 0 is the query direction times this
};

const std::vector<Case> CASES = {
    {"a single key", 1, 1, 1, 1, {{1, false}}},
    {"own and shared", 3, 2, 77, 2, {{77, false}, {129, true}}},
    {"five sources", 2, 3, 70, 3, {{64, true}, {1, true}, {65, false}, {33, true}, {100, false}}},
    {"shared alone", 2, 2, 130, 1, {{63, true}}},
    {"padded rows", 2, 2, 33, 2, {{31, false}, {40, true}}, 1.0, 24},
    {"large scores", 1, 2, 40, 2, {{90, false}, {50, true}}, 25.0},
    {"equal keys", 1, 1, 50, 1, {{70, false}, {60, true}}, 3.0, 0, true},
    {"one key above all", 1, 1, 20, 2, {{100, false}, {30, true}}, 1.0, 8, false, 60.0},
};

// A tensor [groups, frames, tokens, row] in device memory with `padding` between rows, and the same as doubles.
struct Tensor {
  std::vector<uint16_t> bits;
  std::vector<double> values;
  fairy_strides strides;
  void* memory = nullptr;

  Tensor(int groups, int frames, int tokens, int row, int padding, bool shared) {
    const int64_t wide = row + padding, held = shared ? 1 : frames;
    strides = {held * tokens * wide, shared ? 0 : tokens * wide, wide};
    bits.assign(static_cast<size_t>(groups * held * tokens * wide), POISON);
  }
  int64_t index(int64_t g, int64_t f, int64_t t, int64_t c) const {
    return g * strides.group + f * strides.frame + t * strides.token + c;
  }
};

class Problem {
 public:
  Problem(const Device& device, const fairy_kernel_info& kernel, const Case& one)
      : device_(device), kernel_(kernel), case_(one), row_(one.heads * kernel.head_dim) {
    tensors_.push_back(random(one.tokens, false, one.q_size, one.padding));
    for (const Source& source : one.sources) {
      tensors_.push_back(random(source.length, source.shared, 1.0, one.padding));
      tensors_.push_back(random(source.length, source.shared, 1.0, one.padding * 2));
    }
    if (one.equal_keys) level_keys();
    if (one.one_key != 0.0) raise_first_key();
    for (Tensor& tensor : tensors_) upload(tensor);
  }
  Problem(const Problem&) = delete;
  ~Problem() {
    for (Tensor& tensor : tensors_) device_.release(tensor.memory);
  }

  void check() {
    Tensor out(case_.groups, case_.frames, case_.tokens, row_, case_.padding, false);
    upload(out);
    const fairy_attention_args args = arguments(out);
    const fairy_status status = fairy_anchor_attention(&args, nullptr);
    if (status != FAIRY_SUCCESS) {
      ++failures;
      std::cerr << kernel_.name << ", " << case_.name << ": " << fairy_last_error() << "\n";
    } else {
      device_.read(out.bits.data(), out.memory, out.bits.size() * sizeof(uint16_t));
      compare(out);
    }
    device_.release(out.memory);
  }

 private:
  Tensor random(int tokens, bool shared, double size, int padding) {
    Tensor tensor(case_.groups, case_.frames, tokens, row_, padding, shared);
    std::normal_distribution<double> normal(0.0, size);
    for (size_t i = 0; i < tensor.bits.size(); ++i) {
      const bool inside = static_cast<int64_t>(i) % tensor.strides.token < row_;
      if (inside) tensor.bits[i] = numbers::from_double(kernel_.dtype, normal(random_));
    }
    return tensor;
  }

  // Every key is the first source's first one.
  void level_keys() {
    const std::vector<uint16_t> first(tensors_[1].bits.begin(), tensors_[1].bits.begin() + row_);
    for (size_t i = 1; i < tensors_.size(); i += 2) {
      Tensor& keys = tensors_[i];
      for (size_t at = 0; at < keys.bits.size(); at += static_cast<size_t>(keys.strides.token)) {
        std::copy(first.begin(), first.end(), keys.bits.begin() + static_cast<std::ptrdiff_t>(at));
      }
    }
  }

  void raise_first_key() {
    for (int c = 0; c < row_; ++c) {
      const double q = numbers::to_double(kernel_.dtype, tensors_[0].bits[static_cast<size_t>(c)]);
      tensors_[1].bits[static_cast<size_t>(c)] = numbers::from_double(kernel_.dtype, q * case_.one_key);
    }
  }

  void upload(Tensor& tensor) const {
    tensor.memory = device_.allocate(tensor.bits.size() * sizeof(uint16_t));
    device_.write(tensor.memory, tensor.bits.data(), tensor.bits.size() * sizeof(uint16_t));
    for (const uint16_t bits : tensor.bits) tensor.values.push_back(numbers::to_double(kernel_.dtype, bits));
  }

  fairy_attention_args arguments(const Tensor& out) const {
    fairy_attention_args args = {};
    args.struct_size = sizeof(args);
    args.dtype = kernel_.dtype;
    args.groups = case_.groups;
    args.frames = case_.frames;
    args.tokens = case_.tokens;
    args.heads = case_.heads;
    args.head_dim = kernel_.head_dim;
    args.q = tensors_[0].memory;
    args.q_strides = tensors_[0].strides;
    args.out = out.memory;
    args.out_strides = out.strides;
    args.source_count = static_cast<int32_t>(case_.sources.size());
    for (size_t i = 0; i < case_.sources.size(); ++i) {
      const Tensor &k = tensors_[1 + 2 * i], &v = tensors_[2 + 2 * i];
      args.sources[i] = {k.memory, v.memory, case_.sources[i].length, k.strides, v.strides};
    }
    return args;
  }

  // Attention as it is defined, [head_dim], in double precision.
  std::vector<double> expected(int g, int f, int t, int head) const {
    const int dim = kernel_.head_dim;
    const auto at = [&](const Tensor& x, int token, int d) { return x.values[x.index(g, f, token, head * dim + d)]; };
    std::vector<double> scores, result(static_cast<size_t>(dim), 0.0);
    for (size_t s = 0; s < case_.sources.size(); ++s) {
      for (int key = 0; key < case_.sources[s].length; ++key) {
        double score = 0.0;
        for (int d = 0; d < dim; ++d) score += at(tensors_[0], t, d) * at(tensors_[1 + 2 * s], key, d);
        scores.push_back(score / std::sqrt(static_cast<double>(dim)));
      }
    }
    const double top = *std::max_element(scores.begin(), scores.end());
    double total = 0.0;
    for (double& score : scores) total += score = std::exp(score - top);
    size_t i = 0;
    for (size_t s = 0; s < case_.sources.size(); ++s) {
      for (int key = 0; key < case_.sources[s].length; ++key, ++i) {
        for (int d = 0; d < dim; ++d) result[d] += scores[i] / total * at(tensors_[2 + 2 * s], key, d);
      }
    }
    return result;
  }

  // Weights and result are rounded to 16 bit once each, relative to the largest value; a third share is left for
  // exponentials and sums in single precision. What lies between rows must be as it was.
  void compare(const Tensor& out) const {
    double largest = 0.0, error = 0.0;
    for (size_t i = 2; i < tensors_.size(); i += 2) {
      for (const double value : tensors_[i].values) largest = std::fmax(largest, std::fabs(value));
    }
    std::vector<bool> written(out.bits.size(), false);
    for (int g = 0; g < case_.groups; ++g) {
      for (int f = 0; f < case_.frames; ++f) {
        for (int t = 0; t < case_.tokens; ++t) error = std::max(error, row_error(out, g, f, t, written));
      }
    }
    const double allowed = 3.0 * numbers::unit_roundoff(kernel_.dtype) * largest;
    size_t touched = 0;
    for (size_t i = 0; i < out.bits.size(); ++i) touched += !written[i] && out.bits[i] != POISON;
    std::cout << kernel_.name << ", " << case_.name << ": error " << error << " of " << allowed << "\n";
    if (error <= allowed && touched == 0) return;
    ++failures;
    std::cerr << kernel_.name << ", " << case_.name << ": error " << error << " above " << allowed << ", " << touched
              << " elements written that are not the result's\n";
  }

  // Largest error of a row; a NaN counts as infinite.
  double row_error(const Tensor& out, int g, int f, int t, std::vector<bool>& written) const {
    double error = 0.0;
    for (int head = 0; head < case_.heads; ++head) {
      const auto wanted = expected(g, f, t, head);
      for (int d = 0; d < kernel_.head_dim; ++d) {
        const auto at = static_cast<size_t>(out.index(g, f, t, head * kernel_.head_dim + d));
        const double apart = std::fabs(numbers::to_double(kernel_.dtype, out.bits[at]) - wanted[d]);
        error = std::isnan(apart) ? INFINITY : std::max(error, apart);
        written[at] = true;
      }
    }
    return error;
  }

  const Device& device_;
  const fairy_kernel_info& kernel_;
  const Case& case_;
  const int row_;
  std::mt19937 random_{7};
  std::vector<Tensor> tensors_;
};

FakeDriver* find_fake() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW);
  const auto get = library ? reinterpret_cast<fake_driver_function>(dlsym(library, "fake_driver")) : nullptr;
  return get ? get() : nullptr;
}

// Whether the library picks this very kernel on a GPU: of those that run there, the one for the latest minor version.
bool runs(const fairy_kernel_info& kernel, const std::vector<fairy_kernel_info>& all, int major, int minor) {
  const auto fits = [&](const fairy_kernel_info& other) {
    const bool served = other.only_exact ? other.minor == minor : other.minor <= minor;
    return served && other.major == major && other.dtype == kernel.dtype && other.head_dim == kernel.head_dim;
  };
  const auto better = [&](const fairy_kernel_info& other) { return fits(other) && other.minor > kernel.minor; };
  return fits(kernel) && std::none_of(all.begin(), all.end(), better);
}

// The right numbers from every kernel that this GPU runs; the fake one is the first kernel's GPU.
int check_numbers(const Device& device) {
  FakeDriver* fake = find_fake();
  int checked = 0;
  const auto all = all_kernels();
  int major = all.front().major, minor = all.front().minor;
  if (fake == nullptr) device.capability(&major, &minor);
  for (const fairy_kernel_info& kernel : all) {
    if (!runs(kernel, all, major, minor)) continue;
    if (fake) {
      fake->major = major;
      fake->minor = minor;
      fake->dtype = kernel.dtype;
      fake->head_dim = kernel.head_dim;
      fake->block = kernel.block;
      ++fake->generation;
    }
    CHECK_EQUAL(fairy_kernels_load(kernel.dtype, kernel.head_dim), FAIRY_SUCCESS);
    for (const Case& one : CASES) Problem(device, kernel, one).check();
    ++checked;
  }
  std::cout << checked << " kernels checked\n";
  return checked ? failures : SKIPPED;
}

// The sentence that a machine without a GPU gets.
int check_error() {
  const auto all = all_kernels();
  const fairy_attention_args args = sample_call(all.front(), 2);
  const fairy_status status = fairy_anchor_attention(&args, nullptr);
  std::cout << fairy_status_string(status) << ": " << fairy_last_error() << "\n";
  void* driver = dlopen("libcuda.so.1", RTLD_NOW);
  CHECK_EQUAL(status, driver == nullptr ? FAIRY_ERROR_NO_DRIVER : FAIRY_ERROR_NO_DEVICE);
  const std::string remedy = driver == nullptr ? "install it, or use a machine with a GPU." : "check nvidia-smi";
  CHECK(std::string(fairy_last_error()).find(remedy) != std::string::npos);
  CHECK_EQUAL(fairy_kernels_load(args.dtype, args.head_dim), status);
  return failures;
}

}  // namespace

int main(int count, char** arguments) {
  const std::string mode = count > 1 ? arguments[1] : "";
  try {
    const Device device;
    if (mode == "--none") {
      std::cerr << "there is a GPU\n";
      return 1;
    }
    return check_numbers(device);
  } catch (const std::exception& error) {
    std::cout << error.what() << "\n";
    return mode == "--gpu" ? 1 : check_error();
  }
}
