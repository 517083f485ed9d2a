"""Files of torch.save, made without PyTorch."""

from __future__ import annotations

import io
import pickle
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np

STORAGES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "uint16": "BFloat16Storage",  # NumPy has no bfloat16: these are its bits
}


class Storage:
    """Stands for a storage while the file is written."""

    def __init__(self, key, array):
        self.key, self.array = key, array


def torch_file(path, content, arrays):
    """Writes what torch.save writes, by zipfile and pickle, under the names of stand-ins for PyTorch's modules."""
    modules = {name: types.ModuleType(name) for name in ("torch", "torch._utils")}
    for name in STORAGES.values():
        setattr(modules["torch"], name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2(*_):
        """Only its name is written."""

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    modules["torch._utils"]._rebuild_tensor_v2 = _rebuild_tensor_v2
    modules["torch"]._utils = modules["torch._utils"]

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            if not isinstance(obj, Storage):
                return None
            kind = getattr(modules["torch"], STORAGES[str(obj.array.dtype)])
            return ("storage", kind, obj.key, "cpu", obj.array.size)

        def reducer_override(self, obj):
            if not isinstance(obj, np.ndarray):
                return NotImplemented
            strides = tuple(step // obj.itemsize for step in obj.strides)
            key = next(key for key, array in arrays.items() if array is obj)
            return _rebuild_tensor_v2, (Storage(key, obj), 0, obj.shape, strides, False, OrderedDict())

    saved = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        out = io.BytesIO()
        Pickler(out, protocol=2).dump(content)
    finally:
        for name, module in saved.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", out.getvalue())
        archive.writestr("archive/byteorder", "little")
        for key, array in arrays.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
        archive.writestr("archive/version", "3\n")
    return path


def numbered(state):
    return {str(number): array for number, array in enumerate(state.values())}
