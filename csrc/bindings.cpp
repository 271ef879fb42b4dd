// Python module atk._C. Tensors are passed as addresses and sizes, so the module does not link against libtorch and
// works with any version of it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "info_nce.h"
#include "isa.h"
#include "max_mean.h"
#include "normalize.h"
#include "parallel.h"
#include "product.h"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;  // of a contiguous array; 0 means no mask, or no index

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

// Padded sequences as packed ones, with or without a mask.
struct Padded {
  std::vector<std::int32_t> offsets;
  atk::Sequences sequences;

  Padded(Address rows, Address mask, std::int64_t count, std::int64_t length) : offsets(count + 1) {
    for (std::int64_t s = 0; s <= count; ++s) offsets[s] = static_cast<std::int32_t>(s * length);
    sequences = {pointer<void>(rows), offsets.data(), pointer<bool>(mask), count, count * length};
  }
};

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Fused CPU kernels of atk; call them through atk.kernels.cpp.";
  atk::openmp_parallel();  // records which process owns the threads

  py::enum_<atk::Dtype>(m, "Dtype")
      .value("float32", atk::Dtype::float32)
      .value("bfloat16", atk::Dtype::bfloat16)
      .value("float16", atk::Dtype::float16);

  m.def("isa", [] { return atk::kernels().name; }, "Instruction set in use.");
  m.def("available_isas", &atk::available_isas, "Instruction sets that this CPU supports, best first.");
  m.def("set_isa", &atk::set_isa, py::arg("name"), "Selects one of available_isas(); raises ValueError otherwise.");
  m.def("set_screening", &atk::set_screening, py::arg("mode"),
        "int8 screening of the forward, where supported: \"auto\" (default), \"always\", or \"never\".");

  py::class_<atk::Sequences>(m, "Sequences")
      .def(py::init(
               [](Address rows, Address cu_seqlens, Address mask, std::int64_t num_sequences, std::int64_t num_rows) {
                 return atk::Sequences{pointer<void>(rows), pointer<std::int32_t>(cu_seqlens), pointer<bool>(mask),
                                       num_sequences, num_rows};
               }),
           py::kw_only(), py::arg("rows"), py::arg("cu_seqlens"), py::arg("mask"), py::arg("num_sequences"),
           py::arg("num_rows"));

  py::class_<atk::MaxMean>(m, "MaxMean")
      .def(py::init([](const atk::Sequences& audio, const atk::Sequences& text, atk::Dtype dtype, std::int64_t D,
                       bool pairs, int threads) { return atk::MaxMean{audio, text, dtype, D, pairs, threads}; }),
           py::kw_only(), py::arg("audio"), py::arg("text"), py::arg("dtype"), py::arg("D"), py::arg("pairs"),
           py::arg("threads"))
      .def(
          "forward",
          [](const atk::MaxMean& op, Address index, int index_bytes, Address sim) {
            atk::max_mean_forward(op, {pointer<void>(index), index_bytes, 0}, pointer<float>(sim));
          },
          py::kw_only(), py::arg("index"), py::arg("index_bytes"), py::arg("sim"),
          py::call_guard<py::gil_scoped_release>())
      .def(
          "backward",
          [](const atk::MaxMean& op, Address index, int index_bytes, std::int64_t workspace, Address grad,
             Address grad_audio, Address grad_text) {
            atk::max_mean_backward(op, {pointer<void>(index), index_bytes, 0}, workspace, pointer<float>(grad),
                                   pointer<void>(grad_audio), pointer<void>(grad_text));
          },
          py::kw_only(), py::arg("index"), py::arg("index_bytes"), py::arg("workspace"), py::arg("grad"),
          py::arg("grad_audio"), py::arg("grad_text"), py::call_guard<py::gil_scoped_release>());

  m.def(
      "max_mean_padded",
      [](Address audio, Address audio_mask, std::int64_t clips, std::int64_t frames, Address text, Address text_mask,
         std::int64_t captions, std::int64_t tokens, atk::Dtype dtype, std::int64_t D, int threads, Address index,
         int index_bytes, Address sim) {
        const Padded a(audio, audio_mask, clips, frames), t(text, text_mask, captions, tokens);
        const atk::MaxMean op{a.sequences, t.sequences, dtype, D, false, threads};
        atk::max_mean_forward(op, {pointer<void>(index), index_bytes, 0}, pointer<float>(sim));
      },
      py::kw_only(), py::arg("audio"), py::arg("audio_mask"), py::arg("clips"), py::arg("frames"), py::arg("text"),
      py::arg("text_mask"), py::arg("captions"), py::arg("tokens"), py::arg("dtype"), py::arg("D"), py::arg("threads"),
      py::arg("index"), py::arg("index_bytes"), py::arg("sim"), py::call_guard<py::gil_scoped_release>());

  m.def(
      "normalize_rows",
      [](Address rows, atk::Dtype dtype, Address mask, std::int64_t num_rows, std::int64_t D, int threads, Address unit,
         Address inverse_norm) {
        atk::normalize_rows(pointer<void>(rows), dtype, pointer<bool>(mask), num_rows, D, threads, pointer<void>(unit),
                            pointer<float>(inverse_norm));
      },
      py::kw_only(), py::arg("rows"), py::arg("dtype"), py::arg("mask"), py::arg("num_rows"), py::arg("D"),
      py::arg("threads"), py::arg("unit"), py::arg("inverse_norm"), py::call_guard<py::gil_scoped_release>());
  m.def(
      "normalize_rows_backward",
      [](Address grad, Address unit, atk::Dtype dtype, Address inverse_norm, std::int64_t num_rows, std::int64_t D,
         int threads, Address grad_rows) {
        atk::normalize_rows_backward(pointer<void>(grad), pointer<void>(unit), dtype, pointer<float>(inverse_norm),
                                     num_rows, D, threads, pointer<void>(grad_rows));
      },
      py::kw_only(), py::arg("grad"), py::arg("unit"), py::arg("dtype"), py::arg("inverse_norm"), py::arg("num_rows"),
      py::arg("D"), py::arg("threads"), py::arg("grad_rows"), py::call_guard<py::gil_scoped_release>());

  py::class_<atk::LogitBlock>(m, "LogitBlock")
      .def(py::init([](Address values, std::int64_t rows, std::int64_t columns, std::int64_t stride, std::int64_t row,
                       std::int64_t column, Address positive) {
             const atk::Logits logits{pointer<float>(values), rows, columns, stride, 0};
             return atk::LogitBlock{logits, row, column, pointer<std::int64_t>(positive)};
           }),
           py::kw_only(), py::arg("values"), py::arg("rows"), py::arg("columns"), py::arg("stride"), py::arg("row"),
           py::arg("column"), py::arg("positive"))
      .def(
          "add_exponentials",
          [](const atk::LogitBlock& block, float shift, int threads, Address row_sums, Address column_sums,
             Address positive_logits) {
            atk::add_block(block, shift, threads, pointer<float>(row_sums), pointer<float>(column_sums),
                           pointer<float>(positive_logits));
          },
          py::kw_only(), py::arg("shift"), py::arg("threads"), py::arg("row_sums"), py::arg("column_sums"),
          py::arg("positive_logits"), py::call_guard<py::gil_scoped_release>());

  m.def(
      "log_sum_exps",
      [](Address row_sums, std::int64_t rows, Address column_sums, std::int64_t columns, Address positive,
         Address positive_logits, float shift, float smallest) {
        return atk::log_sum_exps({pointer<float>(row_sums), rows}, {pointer<float>(column_sums), columns},
                                 pointer<std::int64_t>(positive), pointer<float>(positive_logits), shift, smallest);
      },
      py::kw_only(), py::arg("row_sums"), py::arg("rows"), py::arg("column_sums"), py::arg("columns"),
      py::arg("positive"), py::arg("positive_logits"), py::arg("shift"), py::arg("smallest"));

  py::class_<atk::LogitGradients>(m, "LogitGradients")
      .def(py::init([](Address row_lse, Address row_grads, std::int64_t rows, Address column_lse, Address column_grads,
                       std::int64_t columns, Address positive_grads) {
             return atk::LogitGradients({pointer<float>(row_lse), pointer<float>(row_grads), rows},
                                        {pointer<float>(column_lse), pointer<float>(column_grads), columns},
                                        pointer<float>(positive_grads));
           }),
           py::kw_only(), py::arg("row_lse"), py::arg("row_grads"), py::arg("rows"), py::arg("column_lse"),
           py::arg("column_grads"), py::arg("columns"), py::arg("positive_grads"))
      .def("set_shift", &atk::LogitGradients::set_shift)
      .def(
          "write",
          [](const atk::LogitGradients& gradients, const atk::LogitBlock& block, int threads, Address out,
             atk::Dtype out_dtype, std::int64_t out_stride) {
            return gradients.write(block, threads, pointer<void>(out), out_dtype, out_stride);
          },
          py::kw_only(), py::arg("block"), py::arg("threads"), py::arg("out"), py::arg("out_dtype"),
          py::arg("out_stride"), py::call_guard<py::gil_scoped_release>());

  m.def("multiplies_bfloat16", &atk::multiplies_bfloat16, "Whether bfloat16_product can run.");
  m.def(
      "bfloat16_product",
      [](Address left, Address right, std::int64_t left_rows, std::int64_t right_rows, std::int64_t D, float factor,
         int threads, Address out, std::int64_t stride) {
        atk::bfloat16_product(pointer<void>(left), pointer<void>(right), left_rows, right_rows, D, factor, threads,
                              pointer<float>(out), stride);
      },
      py::kw_only(), py::arg("left"), py::arg("right"), py::arg("left_rows"), py::arg("right_rows"), py::arg("D"),
      py::arg("factor"), py::arg("threads"), py::arg("out"), py::arg("stride"),
      py::call_guard<py::gil_scoped_release>());
}
