"""What can go wrong between here and a distant board. None of it is a verdict on the compiler."""

from __future__ import annotations

from runtime.faults import RuntimeFault, WorkerDied


class RemoteFault(RuntimeFault):
    """The distant machine cannot be used, or something failed there that is not the board's doing."""


class Unreachable(RemoteFault):
    """No connection comes about."""


class HostKeyRefused(RemoteFault):
    """The machine is not known, or is not the one that is known by this name; says how to find out."""


class AuthenticationRefused(RemoteFault):
    """The machine does not let this user in."""


class NoPython(RemoteFault):
    """There is no Python on the distant machine that can run the worker."""


class NoSpace(RemoteFault):
    """The distant machine's disk has no room for what has to be copied there."""


class BoardInUse(RemoteFault):
    """Somebody else works with the distant board; says who."""


class ConnectionLost(WorkerDied, RemoteFault):
    """The connection was cut while it was in use; a new one can be tried, and goes on where this one ended."""
