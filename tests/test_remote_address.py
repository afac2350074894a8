"""Addresses of distant boards."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.device.remote.address import AddressError, RemoteAddress

names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
users = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.@+$-]{0,20}", fullmatch=True)
printable = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]) | st.just(" "), max_size=20)
paths = printable.map(lambda rest: "/" + rest)
addresses = st.builds(
    RemoteAddress,
    host=names | st.ip_addresses(v=6).map(str),
    number=st.integers(0, 999),
    user=st.none() | users,
    port=st.none() | st.integers(1, 65535),
    libsophon=st.none() | paths,
    python=st.just("python3") | paths,
    cache=st.just("~/.cache/rwkv-tpu-remote") | paths | printable.map(lambda rest: "~/" + rest),
)


@given(addresses)
def test_an_address_reads_as_it_is_written(address):
    """Whatever its parts, the text of an address stands for that address."""
    assert RemoteAddress.parse(str(address)) == address


@given(st.text(max_size=60) | st.text("ssh:/@[]?&=%0a.-", max_size=40).map("ssh://".__add__))
def test_any_other_text_is_refused(text):
    """Nothing but AddressError comes of it, and what is read can be written."""
    try:
        address = RemoteAddress.parse(text)
    except AddressError:
        return
    assert RemoteAddress.parse(str(address)) == address


@given(st.text(min_size=1, max_size=30).map(lambda text: f"Q7{text}Q7"), st.sampled_from(["user", "", "a@b"]))
def test_a_password_is_refused_and_not_repeated(password, user):
    """Whatever characters it has: @, /, ? and # included."""
    with pytest.raises(AddressError, match="password") as caught:
        RemoteAddress.parse(f"ssh://{user}:{password}@host/0")
    assert "Q7" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ssh://host", "expected ssh://"),
        ("ssh://host/", "expected ssh://"),
        ("ssh://host/zero", "expected ssh://"),
        ("ssh:///0", "a host"),
        ("ssh://-oProxyCommand=x/0", "a host"),
        ("ssh://-l@host/0", "a user's name"),
        ("ssh://a b@host/0", "a user's name"),
        ("ssh://user%3Asecret@host/0", "password"),
        ("ssh://user:secret/0", "expected ssh://"),
        ("ssh://host:0/0", "1 to 65535"),
        ("ssh://host:65536/0", "1 to 65535"),
        ("ssh://[::g]/0", "IPv6"),
        ("ssh://[fe80::1%25e;h]/0", "zone"),
        ("ssh://host/0?libsophon", "NAME=VALUE"),
        ("ssh://host/0?libsophone=/opt", "libsophon, python, cache; found 'libsophone'"),
        ("ssh://host/0?libsophon=opt", "absolute path"),
        ("ssh://host/0?python=-c", "absolute path"),
        ("ssh://host/0?cache=/a&cache=/b", "twice"),
        ("ssh://host/0?cache=/a%0Ab", "absolute path"),
        ("ssh://host/0?password=secret", "found 'password'"),
    ],
)
def test_mistakes_are_told(text, words):
    """An error says what was expected, and repeats no secret."""
    with pytest.raises(AddressError) as caught:
        RemoteAddress.parse(text)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def test_the_parts_of_an_address():
    """As in the documentation."""
    assert RemoteAddress.parse(
        "ssh://linaro@192.0.2.7:2222/1?libsophon=/opt/my%20libs&python=python3.8"
    ) == RemoteAddress(
        host="192.0.2.7", number=1, user="linaro", port=2222, libsophon="/opt/my libs", python="python3.8"
    )
    assert RemoteAddress.parse("ssh://linaro@192.0.2.7/1?cache=/data").label == "ssh://linaro@192.0.2.7/1"
