"""Addresses of servers: which are refused, and how they are written."""

import pytest

from alignkit_plugins.servers.remote import checked_address


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "::1", "10.0.0.7", "api.openai.com", "2001:db8::1"]
)
def test_a_slash_at_the_end_is_removed(host: str) -> None:
    url = f"http://{f'[{host}]' if ':' in host else host}:8000/v1"
    assert checked_address(url + "/") == url


@pytest.mark.parametrize("port", ["0", "99999", "abc", "-1"])
def test_ports_that_do_not_exist(port: str) -> None:
    with pytest.raises(ValueError, match=r"[Pp]ort"):
        checked_address(f"http://localhost:{port}/v1")


@pytest.mark.parametrize("host", ["a b", "a\nb", "a\x1b[31mb", "localhost\u202e"])
def test_spaces_and_control_characters_are_refused(host: str) -> None:
    with pytest.raises(ValueError, match="spaces, line breaks or control characters"):
        checked_address(f"http://{host}/v1")
