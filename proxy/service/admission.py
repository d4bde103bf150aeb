"""Leave to ask an upstream for what is not held, asked for just before a flight begins.

A journey does not know whose leave it is, nor what it is counted against; it calls, and either goes
on or passes the refusal up (`proxy.core.failures.TooMany`). Who joins a flight, is served from what
is held, or has it confirmed, is never asked to.
"""

from collections.abc import Callable

Admit = Callable[[], None]


def freely() -> None:
    """Admit: for what nobody in particular asks for, and where there is no limit."""
