"""A simulated GPU: tensors in memory that report a GPU as their device and raise the errors of tensors on a GPU.

Only devices are simulated: an operation on tensors of two devices raises an error, and so does a conversion to NumPy.
Generators and arithmetic are those of the CPU. The device is named "lazy" by default, the only name without kernels of
its own that autograd supports.
"""

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from udmlss import _chunks

aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXING = {aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put_.default, aten.index_put.default}
RETURN_NUMBERS = {aten._local_scalar_dense.default, aten.equal.default, aten.is_pinned.default}


class OnGPU(torch.Tensor):
    """A tensor on the simulated GPU, which wraps a tensor in memory."""

    device_type = "lazy"

    @staticmethod
    def __new__(cls, wrapped):
        layout = {"strides": wrapped.stride(), "storage_offset": wrapped.storage_offset(), "dtype": wrapped.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, wrapped.shape, device=f"{cls.device_type}:0", **layout)

    def __init__(self, wrapped):
        self.wrapped = wrapped

    def __tensor_flatten__(self):  # so that modules moved to the GPU swap their parameters for wrappers
        return ["wrapped"], None

    @staticmethod
    def __tensor_unflatten__(inner, *_):
        return OnGPU(inner["wrapped"])

    def __reduce_ex__(self, protocol):  # checkpoints are loaded to the CPU
        return self.detach().wrapped.__reduce_ex__(protocol)

    def __repr__(self, **_):
        return f"OnGPU({self.wrapped})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class _AllOperations(TorchDispatchMode):
    """Dispatches operations without tensor arguments, such as `torch.zeros`, as well."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class _Generator(torch.Generator):
    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu" if _is_gpu(device) else device)


def _run(function, args, kwargs):
    """Run an operation on the wrapped tensors, and wrap its result if its device is the simulated GPU."""
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    device = kwargs.get("device")
    on_gpu = any(isinstance(tensor, OnGPU) for tensor in tensors) if device is None else _is_gpu(device)
    if function is aten.copy_.default:
        on_gpu = isinstance(args[0], OnGPU)
    elif function not in COPIES:
        _check_devices(function, args, tensors)
    if device is not None:
        kwargs = kwargs | {"device": torch.device("cpu") if _is_gpu(device) else device}
    wrappers = {id(tensor.wrapped): tensor for tensor in tensors if isinstance(tensor, OnGPU)}
    args, kwargs = tree_map_only(OnGPU, lambda tensor: tensor.wrapped, (args, kwargs))
    result = function(*args, **kwargs)
    if not on_gpu or function in RETURN_NUMBERS:
        return result
    return tree_map_only(
        torch.Tensor, lambda tensor: wrappers[id(tensor)] if id(tensor) in wrappers else OnGPU(tensor), result
    )


def _check_devices(function, args, tensors):
    """Raise an error for tensors of two devices; scalars and the indices of a tensor on the GPU may be on the CPU."""
    if function in INDEXING:
        if not isinstance(args[0], OnGPU) and any(isinstance(tensor, OnGPU) for tensor in tensors):
            raise RuntimeError(f"{function}: a tensor on the CPU with indices or values on the GPU")
        tensors = [args[0], *args[2:3]]
    on_cpu = [
        tensor
        for tensor in tensors
        if isinstance(tensor, torch.Tensor) and not isinstance(tensor, OnGPU) and tensor.dim()
    ]
    if on_cpu and any(isinstance(tensor, OnGPU) for tensor in tensors):
        raise RuntimeError(f"{function}: tensors on the GPU and one of shape {tuple(on_cpu[0].shape)} on the CPU")


def _is_gpu(device):
    return torch.device(device).type == OnGPU.device_type


@contextmanager
def pretended_gpu(monkeypatch, device_type="lazy", memory=2**33):
    """Yield a device that is a GPU of so many bytes for all operations of the `with` block.

    "cuda" does not support autograd.
    """
    numpy, tolist = torch.Tensor.numpy, torch.Tensor.tolist
    autocast, is_autocast = torch.autocast, torch.is_autocast_enabled

    def to_numpy(tensor, *, force=False):
        if isinstance(tensor, OnGPU) and not force:
            raise TypeError("can't convert a tensor on the GPU to numpy: use Tensor.cpu() first")
        return numpy(tensor.cpu(), force=force)

    monkeypatch.setattr(OnGPU, "device_type", device_type)
    monkeypatch.setattr(_chunks, "device_memory", lambda _: memory)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.Tensor, "numpy", to_numpy)
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: tolist(tensor.cpu()))
    monkeypatch.setattr(torch, "Generator", _Generator)
    monkeypatch.setattr(torch, "autocast", lambda kind, *a, **k: autocast("cpu" if _is_gpu(kind) else kind, *a, **k))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *kind: is_autocast(*("cpu" for _ in kind)))
    torch._C._ensureCUDADeviceGuardSet()
    with _AllOperations(), torch.backends.cudnn.flags(enabled=False):
        yield torch.device(device_type, 0)
