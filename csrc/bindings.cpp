// Python module atk._C. Tensors come as addresses and sizes, so the module links against no version of libtorch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "isa.h"
#include "max_mean.h"

namespace py = pybind11;

namespace {

template <class T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Fused CPU kernels of atk; call them through atk.kernels.cpp.";

  py::enum_<atk::Dtype>(m, "Dtype")
      .value("float32", atk::Dtype::float32)
      .value("bfloat16", atk::Dtype::bfloat16)
      .value("float16", atk::Dtype::float16);

  m.def("isa", [] { return atk::kernels().name; }, "Instruction set that the kernels use.");
  m.def("available_isas", &atk::available_isas, "Instruction sets that this CPU runs, best first.");
  m.def("set_isa", &atk::set_isa, py::arg("name"), "Forces one of available_isas(); raises ValueError otherwise.");

  // Addresses of contiguous arrays; 0 stands for a mask or an index that is not there.
  py::class_<atk::MaxMean>(m, "MaxMean")
      .def(py::init([](std::uintptr_t audio, std::uintptr_t text, std::uintptr_t audio_mask, std::uintptr_t text_mask,
                       std::uintptr_t index, int index_bytes, atk::Dtype dtype, std::int64_t n_a, std::int64_t n_t,
                       std::int64_t l_a, std::int64_t l_t, std::int64_t d, int threads) {
             return atk::MaxMean{pointer<void>(audio),      pointer<void>(text),  pointer<bool>(audio_mask),
                                 pointer<bool>(text_mask), pointer<void>(index), index_bytes,
                                 dtype,                     n_a,                  n_t,
                                 l_a,                       l_t,                  d,
                                 threads};
           }),
           py::kw_only(), py::arg("audio"), py::arg("text"), py::arg("audio_mask"), py::arg("text_mask"),
           py::arg("index"), py::arg("index_bytes"), py::arg("dtype"), py::arg("n_a"), py::arg("n_t"), py::arg("l_a"),
           py::arg("l_t"), py::arg("d"), py::arg("threads"))
      .def(
          "forward",
          [](const atk::MaxMean& op, std::uintptr_t sim) { atk::max_mean_forward(op, pointer<float>(sim)); },
          py::arg("sim"), py::call_guard<py::gil_scoped_release>())
      .def(
          "backward",
          [](const atk::MaxMean& op, std::uintptr_t grad, std::uintptr_t grad_audio, std::uintptr_t grad_text) {
            atk::max_mean_backward(op, pointer<float>(grad), pointer<void>(grad_audio), pointer<void>(grad_text));
          },
          py::arg("grad"), py::arg("grad_audio"), py::arg("grad_text"), py::call_guard<py::gil_scoped_release>());
}
