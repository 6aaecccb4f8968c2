"""A GPU where there is none: tensors that say they are on it, lie in memory, and refuse what those on a GPU refuse.

What is checked is where tensors are: an operation on tensors of two devices raises, and so does a conversion to NumPy.
Generators are the processor's, and so are all numbers. Autograd serves a device of another name only if that
is "lazy", which has no kernels of its own.
"""

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXED = {aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put_.default, aten.index_put.default}
NUMBERS = {aten._local_scalar_dense.default, aten.equal.default, aten.is_pinned.default}


class OnGPU(torch.Tensor):
    """A tensor that is on the pretended GPU, and the one in memory that it stands for."""

    device_type = "lazy"

    @staticmethod
    def __new__(cls, held):
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, device=f"{cls.device_type}:0", **layout)

    def __init__(self, held):
        self.held = held

    def __tensor_flatten__(self):  # so that modules that move there swap their parameters for these
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner, *_):
        return OnGPU(inner["held"])

    def __reduce_ex__(self, protocol):  # a checkpoint is read to the CPU
        return self.detach().held.__reduce_ex__(protocol)

    def __repr__(self, **_):
        return f"OnGPU({self.held})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class _Anywhere(TorchDispatchMode):
    """Sees what has no tensor among its arguments as well."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class _Generator(torch.Generator):
    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu" if _is_gpu(device) else device)


def _run(function, args, kwargs):
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
    asked = kwargs.get("device")
    there = any(isinstance(each, OnGPU) for each in tensors) if asked is None else _is_gpu(asked)
    if function is aten.copy_.default:
        there = isinstance(args[0], OnGPU)
    elif function not in COPIES:
        _check_places(function, args, tensors)
    if asked is not None:
        kwargs = kwargs | {"device": torch.device("cpu") if _is_gpu(asked) else asked}
    known = {id(each.held): each for each in tensors if isinstance(each, OnGPU)}
    args, kwargs = tree_map_only(OnGPU, lambda each: each.held, (args, kwargs))
    found = function(*args, **kwargs)
    if not there or function in NUMBERS:
        return found
    return tree_map_only(torch.Tensor, lambda each: known[id(each)] if id(each) in known else OnGPU(each), found)


def _check_places(function, args, tensors):
    """Refuse two devices: a single number may be on the CPU, and so may what indexes a tensor on the GPU."""
    if function in INDEXED:
        if not isinstance(args[0], OnGPU) and any(isinstance(each, OnGPU) for each in tensors):
            raise RuntimeError(f"{function}: a tensor on the CPU indexed by, or given, one on the GPU")
        tensors = [args[0], *args[2:3]]
    alone = [each for each in tensors if isinstance(each, torch.Tensor) and not isinstance(each, OnGPU) and each.dim()]
    if alone and any(isinstance(each, OnGPU) for each in tensors):
        raise RuntimeError(f"{function}: tensors on the GPU and one of shape {tuple(alone[0].shape)} on the CPU")


def _is_gpu(device):
    return torch.device(device).type == OnGPU.device_type


@contextmanager
def pretended_gpu(monkeypatch, device_type="lazy"):
    """Yield a device that is a GPU to all that PyTorch runs in the `with` block; "cuda" is one without autograd."""
    numpy, tolist, autocast = torch.Tensor.numpy, torch.Tensor.tolist, torch.autocast

    def to_numpy(tensor, *, force=False):
        if isinstance(tensor, OnGPU) and not force:
            raise TypeError("can't convert a tensor on the GPU to numpy: use Tensor.cpu() first")
        return numpy(tensor.cpu(), force=force)

    monkeypatch.setattr(OnGPU, "device_type", device_type)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.Tensor, "numpy", to_numpy)
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: tolist(tensor.cpu()))
    monkeypatch.setattr(torch, "Generator", _Generator)
    monkeypatch.setattr(torch, "autocast", lambda kind, *a, **k: autocast("cpu" if _is_gpu(kind) else kind, *a, **k))
    torch._C._ensureCUDADeviceGuardSet()
    with _Anywhere():
        yield torch.device(device_type, 0)
