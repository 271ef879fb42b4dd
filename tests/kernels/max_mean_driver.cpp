// Runs the kernels of csrc/ under every instruction set that this processor supports and compares them with double
// precision. It needs no Python, so it also runs under an emulator: see test_max_mean_driver.py. Prints each
// instruction set, then one line per failure; the exit status is 1 if there is any. --list only prints the
// instruction sets.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "half.h"
#include "isa.h"
#include "max_mean.h"
#include "normalize.h"

namespace {

using atk::Dtype;
using Lengths = std::vector<int32_t>;
using Value = std::function<float(int64_t row, int64_t channel)>;

constexpr Dtype kDtypes[] = {Dtype::float32, Dtype::bfloat16, Dtype::float16};
constexpr const char* kDtypeNames[] = {"float32", "bfloat16", "float16"};

std::mt19937 generator{0};
int failures = 0;

float normal() { return std::normal_distribution<float>()(generator); }
float integer() { return static_cast<float>(std::uniform_int_distribution<int>(-2, 2)(generator)); }

double epsilon(Dtype dtype) { return dtype == Dtype::float32 ? 0x1p-23 : dtype == Dtype::bfloat16 ? 0x1p-7 : 0x1p-10; }

// A tensor in the format of a dtype.
struct Array {
  Dtype dtype;
  std::vector<char> bytes;

  Array(Dtype dtype, size_t size) : dtype(dtype), bytes(size * (dtype == Dtype::float32 ? 4 : 2), '\x7f') {}

  template <class T>
  T* as() {
    return reinterpret_cast<T*>(bytes.data());
  }
  float get(size_t k) {
    if (dtype == Dtype::float32) return as<float>()[k];
    return dtype == Dtype::bfloat16 ? atk::widen(as<atk::BFloat16>()[k]) : atk::widen(as<atk::Float16>()[k]);
  }
  void set(size_t k, float x) {
    if (dtype == Dtype::float32) return atk::narrow(x, as<float>() + k);
    if (dtype == Dtype::bfloat16) return atk::narrow(x, as<atk::BFloat16>() + k);
    atk::narrow(x, as<atk::Float16>() + k);
  }
};

// Packed sequences, of which a third of the rows is masked if wanted; masked rows hold NaN.
struct Batch {
  Array rows;
  int64_t D;
  Lengths cu_seqlens{0};
  std::vector<uint8_t> mask;
  std::vector<std::vector<int64_t>> valid;  // rows of each sequence

  Batch(Dtype dtype, const Lengths& lengths, int64_t D, bool masked, const Value& value)
      : rows(dtype, 0), D(D) {
    for (int32_t length : lengths) cu_seqlens.push_back(cu_seqlens.back() + length);
    rows = Array(dtype, static_cast<size_t>(count() * D));
    mask.assign(count(), 1);
    valid.resize(lengths.size());
    for (size_t s = 0; s < lengths.size(); ++s)
      for (int64_t r = cu_seqlens[s]; r < cu_seqlens[s + 1]; ++r) {
        if (masked) mask[r] = generator() % 3 != 0;
        if (mask[r]) valid[s].push_back(r);
        for (int64_t c = 0; c < D; ++c) rows.set(r * D + c, mask[r] ? value(r, c) : NAN);
      }
  }

  int64_t count() const { return cu_seqlens.back(); }
  atk::Sequences view() const {
    return {rows.bytes.data(), cu_seqlens.data(), reinterpret_cast<const bool*>(mask.data()),
            static_cast<int64_t>(valid.size()), count()};
  }
  std::vector<double> wide() {
    std::vector<double> result(count() * D);
    for (size_t k = 0; k < result.size(); ++k) result[k] = rows.get(k);
    return result;
  }
};

// Inputs, and whether float32 scores are exact, so that every winner is known.
struct Case {
  std::string name;
  Batch audio, text;
  bool pairs, exact;

  int64_t clips() const { return audio.valid.size(); }
  int64_t captions() const { return text.valid.size(); }
  int64_t pair(int64_t i, int64_t j) const { return pairs ? i : i * captions() + j; }
  int64_t winners() const { return (pairs ? 1 : captions()) * audio.count(); }
};

struct Outputs {
  std::vector<float> sim;
  std::vector<int32_t> index;  // [captions, frames], as the kernels write it
  Array grad_audio, grad_text;
};

bool same(const Outputs& a, const Outputs& b) {
  return !std::memcmp(a.sim.data(), b.sim.data(), a.sim.size() * sizeof(float)) && a.index == b.index &&
         a.grad_audio.bytes == b.grad_audio.bytes && a.grad_text.bytes == b.grad_text.bytes;
}

// `saved`: whether the backward reads the winners of the forward or finds them again, a few captions at a time.
Outputs run(const Case& c, const std::vector<float>& grad, int threads, bool saved) {
  const atk::MaxMean op{c.audio.view(), c.text.view(), c.audio.rows.dtype, c.audio.D, c.pairs, threads};
  Outputs out{std::vector<float>(grad.size(), NAN), std::vector<int32_t>(c.winners()), c.audio.rows, c.text.rows};
  size_t longest = 0;
  for (const auto& rows : c.text.valid) longest = std::max(longest, rows.size());
  const int bytes = longest <= 256 ? 1 : longest <= 32768 ? 2 : 4;
  std::vector<char> index(c.winners() * bytes);
  const atk::Winners winners{index.data(), bytes, 0};
  atk::max_mean_forward(op, winners, out.sim.data());
  for (int64_t k = 0; k < c.winners(); ++k) std::memcpy(&out.index[k], &index[k * bytes], bytes);  // little-endian
  atk::max_mean_backward(op, saved ? winners : atk::Winners{nullptr, bytes, 0}, 3 * c.audio.count() * bytes,
                         grad.data(), out.grad_audio.bytes.data(), out.grad_text.bytes.data());
  return out;
}

bool near(double got, double want, double tolerance) {
  return std::isfinite(want) ? std::abs(got - want) <= tolerance : std::isnan(want) ? std::isnan(got) : got == want;
}

double norm(const double* row, int64_t D) {
  double square = 0;
  for (int64_t c = 0; c < D; ++c) square += row[c] * row[c];
  return std::sqrt(square);
}

bool close(Array& got, const std::vector<double>& want) {
  double largest = 0;
  for (double x : want) largest = std::isfinite(x) ? std::max(largest, std::abs(x)) : largest;
  for (size_t k = 0; k < want.size(); ++k)
    if (!near(got.get(k), want[k], epsilon(got.dtype) * std::abs(want[k]) + 1e-5 * largest + DBL_MIN)) return false;
  return true;
}

// What is wrong with the outputs; empty if nothing is. The gradients are those of the winners that were chosen.
std::string compare(Case& c, const std::vector<float>& grad, Outputs& out) {
  const int64_t D = c.audio.D;
  const std::vector<double> audio = c.audio.wide(), text = c.text.wide();
  std::vector<double> grad_audio(audio.size()), grad_text(text.size()), scores;
  const double roundings = c.audio.rows.dtype == Dtype::bfloat16 ? 4 : 2;  // per product
  for (int64_t i = 0; i < c.clips(); ++i)
    for (int64_t j = c.pairs ? i : 0; j < (c.pairs ? i + 1 : c.captions()); ++j) {
      const std::vector<int64_t>&frames = c.audio.valid[i], &tokens = c.text.valid[j];
      const int64_t first_frame = [&] {
        int64_t before = 0;
        for (int64_t k = 0; k < i; ++k) before += c.audio.valid[k].size();
        return before;
      }();
      double longest_token = 0, sum = 0, tolerance = 0;
      for (int64_t l : tokens) longest_token = std::max(longest_token, norm(&text[l * D], D));
      for (size_t t = 0; t < frames.size() && !tokens.empty(); ++t) {
        const double* frame = &audio[frames[t] * D];
        scores.assign(tokens.size(), 0);
        size_t best = 0;
        for (size_t l = 0; l < tokens.size(); ++l) {
          for (int64_t k = 0; k < D; ++k) scores[l] += frame[k] * text[tokens[l] * D + k];
          if (scores[l] > scores[best] || (std::isnan(scores[l]) && !std::isnan(scores[best]))) best = l;
        }
        const size_t winner = out.index[(c.pairs ? 0 : j * c.audio.count()) + first_frame + t];
        if (winner >= tokens.size()) return "winner out of range";
        const double rounding = roundings * D * 0x1p-24 * norm(frame, D) * longest_token + D * FLT_MIN;
        if (c.exact ? winner != best : scores[best] - scores[winner] > rounding) return "wrong winner";
        for (size_t l = 0; l < winner; ++l)
          if (!std::memcmp(&text[tokens[l] * D], &text[tokens[winner] * D], D * sizeof(double)))
            return "not the first of equal tokens";
        sum += scores[best];
        tolerance += 2 * rounding;
        const double weight = static_cast<double>(grad[c.pair(i, j)]) / frames.size();
        for (int64_t k = 0; k < D && weight != 0; ++k) {
          grad_audio[frames[t] * D + k] += weight * text[tokens[winner] * D + k];
          grad_text[tokens[winner] * D + k] += weight * frame[k];
        }
      }
      const double count = std::max<size_t>(frames.size(), 1);
      if (!near(out.sim[c.pair(i, j)], sum / count, tolerance / count)) return "wrong similarity";
    }
  if (!close(out.grad_audio, grad_audio)) return "wrong gradient of the audio";
  return close(out.grad_text, grad_text) ? "" : "wrong gradient of the text";
}

void fail(const std::string& what) {
  std::printf("%s: %s\n", atk::kernels().name, what.c_str());
  ++failures;
}

void check(Case c) {
  std::vector<float> grad(c.pairs ? c.clips() : c.clips() * c.captions());
  for (float& g : grad) g = generator() % 4 ? normal() : 0;
  for (const char* mode : {"never", "always", "auto"}) {
    atk::set_screening(mode);
    if (std::strcmp(mode, "never") && !atk::kernels().screen) continue;
    const std::string what =
        std::string(kDtypeNames[static_cast<int>(c.audio.rows.dtype)]) + ", " + c.name + ", screening " + mode + ": ";
    Outputs out = run(c, grad, 1, true);
    const std::string problem = compare(c, grad, out);
    if (!problem.empty()) fail(what + problem);
    if (!same(run(c, grad, 3, false), out)) fail(what + "not the same with recomputed winners and three threads");
  }
}

void check_normalize(Dtype dtype, int64_t D) {
  Batch x(dtype, {70}, D, true, [](int64_t r, int64_t) { return r == 5 ? 0 : normal(); });
  Batch grad(dtype, {70}, D, false, [](int64_t, int64_t) { return normal(); });
  Array unit(dtype, 70 * D), grad_rows(dtype, 70 * D);
  std::vector<float> inverse(70);
  atk::normalize_rows(x.rows.bytes.data(), dtype, x.view().mask, 70, D, 2, unit.bytes.data(), inverse.data());
  atk::normalize_rows_backward(grad.rows.bytes.data(), unit.bytes.data(), dtype, inverse.data(), 70, D, 2,
                               grad_rows.bytes.data());
  std::vector<double> want_unit(70 * D), want_grad(70 * D);
  for (int64_t r : x.valid[0]) {
    double square = 0, along = 0;
    for (int64_t k = r * D; k < (r + 1) * D; ++k) {
      square += std::pow(x.rows.get(k), 2);
      along += grad.rows.get(k) * unit.get(k);
    }
    for (int64_t k = r * D; k < (r + 1) * D && square > 0; ++k) {
      want_unit[k] = x.rows.get(k) / std::sqrt(square);
      want_grad[k] = (grad.rows.get(k) - along * unit.get(k)) / std::sqrt(square);
    }
  }
  if (!close(unit, want_unit) || !close(grad_rows, want_grad))
    fail(std::string("normalization of ") + kDtypeNames[static_cast<int>(dtype)]);
}

void check_all(Dtype dtype) {
  const auto any = [](int64_t, int64_t) { return normal(); };
  const auto whole = [](int64_t, int64_t) { return integer(); };
  const Lengths clips{70, 1, 0, 130, 33, 5}, captions{3, 12, 32, 0, 1, 9}, many(8, 150), long_captions(9, 30);
  const auto batch = [&](const Lengths& lengths, int64_t D, bool masked, const Value& value) {
    return Batch(dtype, lengths, D, masked, value);
  };
  for (int64_t D : {1, 31, 70, 128})
    for (bool masked : {false, true})
      for (bool pairs : {false, true}) {
        const std::string shape = "D = " + std::to_string(D) + (masked ? ", masked" : "") + (pairs ? ", pairs" : "");
        check({"random, " + shape, batch(clips, D, masked, any), batch(captions, D, masked, any), pairs, false});
        check({"integers, " + shape, batch(clips, D, masked, whole), batch(captions, D, masked, whole), pairs, true});
      }
  Lengths every_length;
  for (int32_t length = 1; length <= 26; ++length) every_length.push_back(length);
  check({"every tile", batch(every_length, 5, false, whole), batch(every_length, 5, false, whole), false, true});
  check({"two bytes per winner", batch({40}, 3, false, whole), batch({257, 300}, 3, false, whole), false, true});
  check({"worth screening", batch(many, 64, false, any), batch(long_captions, 64, false, any), false, false});
  check({"equal tokens", batch(many, 48, false, any),
         batch(long_captions, 48, false, [](int64_t r, int64_t k) { return std::sin(r % 5 * 48 + k + 1.0f); }), false,
         false});
  check({"near ties", batch(clips, 96, false, any),
         batch(captions, 96, false, [](int64_t, int64_t) { return 1 + 1e-6f * integer(); }), false, false});
  for (float scale : {1e-30f, 1e-7f, 1e4f, 1e15f, 1e17f}) {
    if (dtype == Dtype::float16 && (scale < 1e-7f || scale > 1e4f)) continue;
    const auto scaled = [&](int64_t r, int64_t) { return r % 2 ? normal() : scale * normal(); };
    check({"rows of scale " + std::to_string(scale), batch(clips, 33, false, scaled),
           batch(captions, 33, false, scaled), false, false});
  }
  for (float value : {NAN, INFINITY, -INFINITY})
    for (int64_t row : {0, 7, 12, 13}) {
      const auto poisoned = [&](int64_t r, int64_t k) { return r == row && k == 0 ? value : integer(); };
      const Batch text = batch({26, 40}, 20, false, poisoned);
      check({"non-finite tokens", batch(clips, 20, false, whole), text, false, true});
      check({"non-finite frames and tokens", batch(clips, 20, false, poisoned), text, false, true});
    }
  for (int64_t D : {3, 33, 128}) check_normalize(dtype, D);
}

}  // namespace

int main(int argc, char** argv) {
  const bool list = argc > 1 && !std::strcmp(argv[1], "--list");
  for (const std::string& isa : atk::available_isas()) {
    std::printf("%s\n", isa.c_str());
    if (list) continue;
    atk::set_isa(isa);
    generator.seed(0);  // the same inputs for every instruction set
    for (Dtype dtype : kDtypes) check_all(dtype);
  }
  return failures != 0;
}
