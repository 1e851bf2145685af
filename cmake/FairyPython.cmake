# Finds the Python that compiles the kernels: -DPython3_EXECUTABLE=…, else the checkout's .venv, else the system's.
# Sets Python3_EXECUTABLE; stops with the remedy where PyTorch or Triton is missing.

if(NOT Python3_EXECUTABLE AND EXISTS "${PROJECT_SOURCE_DIR}/.venv/bin/python")
  set(Python3_EXECUTABLE "${PROJECT_SOURCE_DIR}/.venv/bin/python")
endif()
find_package(Python3 3.11 REQUIRED COMPONENTS Interpreter)

execute_process(
  COMMAND "${Python3_EXECUTABLE}" -P -c
    "import importlib.util as u; print(', '.join(n for n in ('torch', 'triton') if u.find_spec(n) is None))"
  OUTPUT_VARIABLE FAIRY_MISSING OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE FAIRY_PYTHON_FAILED)
if(FAIRY_PYTHON_FAILED OR FAIRY_MISSING)
  message(FATAL_ERROR
    "Compiling the kernels needs PyTorch and Triton, which ${Python3_EXECUTABLE} lacks (${FAIRY_MISSING}). Run "
    "`make setup`, name a Python that has them by -DPython3_EXECUTABLE=…, or leave the library out by "
    "-DFAIRY_NATIVE=OFF.")
endif()
