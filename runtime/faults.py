"""What can go wrong between a caller and a device, one class for each remedy. Runs on Python 3.8."""
# ruff: noqa: N818 - the names say what happened; an "Error" at the end would add nothing

from __future__ import annotations


class RuntimeFault(Exception):
    """Any failure of libraries, bmodels, worker or device. Wrong arguments are ValueErrors, not faults."""


class LibraryMissing(RuntimeFault):
    """A vendor library is absent or does not load; the message lists the paths that were looked for."""


class BadBmodel(RuntimeFault):
    """A file is no bmodel, is truncated, is refused by the library, or its nets break the contract."""


class DeviceError(RuntimeFault):
    """A vendor function reported failure.

    Attributes:
        call: name of the vendor function.
        status: what it returned; None where it returns no status code.
    """

    def __init__(self, message: str, *, call: str = "", status: int | None = None) -> None:
        super().__init__(message)
        self.call = call
        self.status = status


class FunctionMissing(DeviceError):
    """A vendor library lacks a function: it is older than needed for what was asked."""


class OutOfDeviceMemory(RuntimeFault):
    """The device has no memory left for what was asked."""


class WorkerDied(RuntimeFault):
    """The worker process ended in the middle of its work.

    Attributes:
        returncode: exit code; negative for the signal that killed it.
    """

    def __init__(self, message: str, *, returncode: int | None = None) -> None:
        super().__init__(message)
        self.returncode = returncode


class WorkerHung(RuntimeFault):
    """The worker did not answer in time and was killed.

    Attributes:
        silent_s: seconds since its last sign of life; it gives one every second, also while a library call lasts.
    """

    def __init__(self, message: str, *, silent_s: float = 0.0) -> None:
        super().__init__(message)
        self.silent_s = silent_s


class BadStateFile(RuntimeFault):
    """A file is no saved state, is damaged, or is the state of another model."""
