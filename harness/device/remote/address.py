"""The address of a distant board: ``ssh://user@host:port/0?libsophon=/folder``."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from dataclasses import dataclass, fields
from urllib.parse import parse_qsl, quote, unquote, urlencode

SCHEME = "ssh://"

_FORM = re.compile(
    r"ssh://(?:(?P<user>[^@/?#:]*)@)?(?P<host>\[[^\]@/?#]*\]|[^@/?#:\[\]]*)(?::(?P<port>[0-9]{1,9}))?"
    r"/(?P<number>[0-9]{1,3})(?:\?(?P<query>[^#]*))?"
)
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+$-]*")  # none begins like an option of ssh, none means much to a shell
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_WANTED = "expected ssh://user@host:port/NUMBER, where user@ and :port may be left out and NUMBER is the board's"


class AddressError(ValueError):
    """This is no address of a distant board; says why, and never repeats what may be a password."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteAddress:
    """Where a distant board is. User, port and the rest may also come from the user's own configuration of ssh.

    Attributes:
        host: a name, an alias from the configuration of ssh, or an IP address.
        number: of the board on that machine.
        libsophon: libsophon's folder there, or its folder of libraries, in place of the usual one.
        python: Python 3.8 or newer there; a name is looked for on the PATH.
        cache: folder there for the worker and the bmodels; ``~`` is the user's home there.
    """

    host: str
    number: int
    user: str | None = None
    port: int | None = None
    libsophon: str | None = None
    python: str = "python3"
    cache: str = "~/.cache/rwkv-tpu-remote"

    @classmethod
    def parse(cls, text: str) -> RemoteAddress:
        """Read an address.

        Raises:
            AddressError: *text* is none, or it holds a password.
        """
        # Up to the last @ rather than the first: a password may itself hold any character.
        if ":" in unquote(text.removeprefix(SCHEME).rpartition("@")[0]):
            raise AddressError(
                "the address holds a password, or a colon before an @. Passwords are never taken: make a key with "
                "ssh-keygen, copy it with ssh-copy-id, and leave the password out (in paths, @ is written %40)"
            )
        match = _FORM.fullmatch(text)
        if match is None:
            raise AddressError(_WANTED)
        user, host, port = match["user"], match["host"], match["port"]
        if user is not None:
            user = unquote(user)
            if not _USER.fullmatch(user):
                raise AddressError("a user's name has letters, digits and _.@+$-; the address has another")
        if port is not None and not 1 <= int(port) <= 65535:
            raise AddressError(f"a port is a number from 1 to 65535; found {port}")
        options = _options(match["query"] or "")
        return cls(
            host=_host(host),
            number=int(match["number"]),
            user=user,
            port=None if port is None else int(port),
            **options,
        )

    @property
    def login(self) -> str:
        """``user@host``, as people and ssh write it."""
        return self.host if self.user is None else f"{self.user}@{self.host}"

    @property
    def label(self) -> str:
        """The address without its options."""
        user = "" if self.user is None else f"{quote(self.user, safe='')}@"
        host = f"[{quote(self.host, safe=':')}]" if ":" in self.host else self.host
        port = "" if self.port is None else f":{self.port}"
        return f"{SCHEME}{user}{host}{port}/{self.number}"

    @property
    def name(self) -> str:
        """A word for the names of files about it: another option is another board."""
        digest = hashlib.sha256(str(self).encode()).hexdigest()[:8]
        return f"{re.sub('[^A-Za-z0-9.-]', '-', self.host)}-{self.number}-{digest}"

    def __str__(self) -> str:
        """The whole address; reading it gives this value again."""
        defaults = {field.name: field.default for field in fields(self)}
        given = {name: getattr(self, name) for name in _OPTIONS if getattr(self, name) != defaults[name]}
        return f"{self.label}?{urlencode(given, quote_via=quote)}" if given else self.label


_OPTIONS = ("libsophon", "python", "cache")


def _host(text: str) -> str:
    if not text.startswith("["):
        if not _HOST.fullmatch(text):
            raise AddressError(f"{_WANTED}; found a host of {text!r}")
        return text
    try:
        address = ipaddress.IPv6Address(unquote(text[1:-1]))
    except ValueError:
        raise AddressError(f"{_WANTED}; found {text!r}, where brackets hold an IPv6 address") from None
    if address.scope_id is not None and not _HOST.fullmatch(address.scope_id):
        raise AddressError(f"{_WANTED}; found {text!r}, whose zone is no name of a network interface")
    return str(address)


def _options(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict")
    except ValueError:
        raise AddressError("behind the ? of an address stands NAME=VALUE&NAME=VALUE; found something else") from None
    options: dict[str, str] = {}
    for name, value in pairs:
        if name not in _OPTIONS:
            raise AddressError(f"options of an address are {', '.join(_OPTIONS)}; found {name!r}")
        if name in options:
            raise AddressError(f"the address gives {name} twice")
        plain_name = name == "python" and "/" not in value
        begins_well = value.startswith("/") or (name == "cache" and value.startswith("~/")) or plain_name
        if not begins_well or value.startswith("-") or not value.isprintable():
            raise AddressError(f"{name} of an address should be an absolute path there; found {value!r}")
        options[name] = value
    return options
