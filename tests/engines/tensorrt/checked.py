"""NVIDIA's real Python bindings with scripted answers.

Every call goes to a scripted object, which decides what happens, and to the real bindings over the fake library, which
raise their own TypeError or AttributeError where a name, a number of arguments or a type is wrong. What the bindings
hand back as a bool, number, text, enumeration or None was scripted too and has to be the same.
"""

import ctypes
from collections.abc import Callable
from enum import Enum
from typing import Any

_AFTER = {"infer_shapes": 1}  # the bindings ask the context for its engine before they ask for shapes
_DIMS = 2
_GIVE_NOTHING = ("build_serialized_network", "deserialize_cuda_engine", "create_execution_context")


class CheckedModule:
    """The bindings module whose builders, parsers and runtimes answer as `scripted` says."""

    def __init__(self, real: Any, scripted: Any, library: Any) -> None:
        self._real, self._scripted, self._answers = real, scripted, _Answers(library)
        self.calls: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)
        if name in ("Builder", "OnnxParser", "Runtime"):
            return self._called(name, real, getattr(self._scripted, name))
        return real

    def _called(self, name: str, real: Callable[..., Any], scripted: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.add(name)
            try:
                result = scripted(*map(_scripted, args), **{key: _scripted(value) for key, value in kwargs.items()})
            except TypeError:
                with self._answers.of("deserialize_cuda_engine", None):
                    return real(*map(_real, args))  # raises on its own
            with self._answers.of(name, result):
                found = real(*map(_real, args), **{key: _real(value) for key, value in kwargs.items()})
            return self._joined(name, found, result)

        return call

    def _joined(self, name: str, found: Any, result: Any) -> Any:
        if isinstance(result, (bool, int, str)) or (result is None and name in _GIVE_NOTHING) or _is_enum(result):
            assert found == result, f"{name} gave {found!r}, scripted was {result!r}"
        if isinstance(result, tuple):
            assert tuple(found) == result, f"{name} gave {tuple(found)}, scripted was {result}"
        if result is None or isinstance(result, (bool, int, str, bytes, tuple, list)) or _is_enum(result):
            return result
        return Checked(self, found, result)


class Checked:
    """One object of the API."""

    def __init__(self, module: CheckedModule, real: Any, scripted: Any) -> None:
        vars(self).update(_module=module, _real=real, _scripted=scripted)

    def __getattr__(self, name: str) -> Any:
        scripted = getattr(self._scripted, name)
        self._module.calls.add(name)
        if callable(scripted):
            return self._module._called(name, getattr(self._real, name), scripted)
        with self._module._answers.of(name, scripted):
            found = getattr(self._real, name)
        return self._module._joined(name, found, scripted)

    def __setattr__(self, name: str, value: Any) -> None:
        self._module.calls.add(name)
        setattr(self._real, name, _real(value))
        setattr(self._scripted, name, _scripted(value))


class _Answers:
    """Scripts the library's next answer for the length of a `with` block."""

    def __init__(self, library: Any) -> None:
        self._script = library.script
        self._script.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p)

    def of(self, name: str, result: Any) -> "_Answers":
        after = _AFTER.get(name, 0)
        if isinstance(result, (bool, int)) or _is_enum(result):
            self._script(1, after, int(result))
        elif isinstance(result, str):
            self._text = ctypes.create_string_buffer(result.encode())
            self._script(1, after, ctypes.addressof(self._text))
        elif result and isinstance(result, (list, tuple)):
            dims = result if isinstance(result, tuple) else result[0]
            self._dims = (ctypes.c_int64 * 9)(len(dims), *dims)
            self._script(_DIMS, after, ctypes.addressof(self._dims))
        elif result == [] or (result is None and name in _GIVE_NOTHING):
            self._script(1, after, 0)
        else:
            self._script(0, 0, 0)  # the one object: true, and a pointer to something
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self._script(0, 0, 0)


def _real(value: Any) -> Any:
    return vars(value)["_real"] if isinstance(value, Checked) else value


def _scripted(value: Any) -> Any:
    return vars(value)["_scripted"] if isinstance(value, Checked) else value


def _is_enum(value: Any) -> bool:
    return isinstance(value, Enum) or hasattr(type(value), "__members__")
