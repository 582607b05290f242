"""Asks the CUDA driver about devices without creating a CUDA context.

A context takes several hundred MiB of a device's memory as long as its process lives. The launcher
computes nothing, so it must not call anything that initialises `torch.cuda`.
"""

import ctypes
import warnings
from functools import cache
from typing import Any

import torch

NAME_BYTES = 256

_IPC_SUPPORTED = 125
"""The driver's number of the attribute CU_DEVICE_ATTRIBUTE_IPC_EVENT_SUPPORTED."""


def device_count() -> int:
    """Return the number of CUDA devices that torch can use."""
    return 0 if why_none() else torch.cuda.device_count()


@cache  # the CUDA runtime reports the reason only once
def why_none() -> str:
    """Return why torch can use no CUDA device; "" if it can use at least one."""
    if torch.cuda.device_count() == 0:
        return "there is no CUDA device"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # `device_count` also counts devices that torch cannot use, for example because the driver
        # is too old. `is_available` asks the CUDA runtime, and does not initialise `torch.cuda`.
        if torch.cuda.is_available():
            return ""
    reasons = [str(warning.message).partition(" (Triggered")[0] for warning in caught]
    return "torch cannot use the CUDA device: " + " ".join(reasons or ["no reason is known"])


def device_name(device: str) -> str:
    """Return the name of a CUDA device, such as "NVIDIA H100 80GB HBM3".

    `device` is the device as torch names it, such as `cuda:0`.

    Raises:
        RuntimeError: The CUDA driver cannot describe the device.
    """
    driver = _driver()
    if driver is None:
        return str(torch.cuda.get_device_name(device))
    text = ctypes.create_string_buffer(NAME_BYTES)
    _check(driver.cuDeviceGetName(text, NAME_BYTES, _handle(driver, device)))
    return text.value.decode(errors="replace")


def can_access_peer(source: str, target: str) -> bool:
    """Return whether CUDA device `source` can read and write the memory of device `target`.

    Raises:
        RuntimeError: The CUDA driver cannot describe one of the devices.
    """
    driver = _driver()
    if driver is None:
        return torch.cuda.can_device_access_peer(source, target)
    found = ctypes.c_int()
    handles = _handle(driver, source), _handle(driver, target)
    _check(driver.cuDeviceCanAccessPeer(ctypes.byref(found), *handles))
    return bool(found.value)


def supports_ipc(device: str) -> bool:
    """Return whether two processes can share memory and events of a CUDA device (CUDA IPC).

    If the driver cannot tell, the result is True. If the result is True, a container may still
    forbid CUDA IPC.

    Raises:
        RuntimeError: The CUDA driver does not know the device.
    """
    driver = _driver()
    if driver is None:
        return True
    found = ctypes.c_int()
    status = driver.cuDeviceGetAttribute(
        ctypes.byref(found), _IPC_SUPPORTED, _handle(driver, device)
    )
    return bool(status or found.value)


@cache
def _driver() -> Any:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:  # for example with ROCm
        return None
    return driver if driver.cuInit(0) == 0 else None


def _handle(driver: Any, device: str) -> ctypes.c_int:
    handle = ctypes.c_int()
    # The driver numbers devices as torch does.
    _check(driver.cuDeviceGet(ctypes.byref(handle), torch.device(device).index or 0))
    return handle


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"the CUDA driver cannot describe a device: error {status}")
