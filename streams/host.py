"""The address by which other machines know this one, for workers that were not told theirs."""

import functools
import ipaddress
import socket


@functools.cache
def own_address() -> str:
    """The address that this machine's name stands for; the name where it is no use.

    In a container the name stands for the container's own address, also where others could not look it up.
    """
    name = socket.gethostname()
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return name
    for address in (ipaddress.ip_address(str(sockaddr[0]).partition("%")[0]) for *_, sockaddr in found):
        if not address.is_loopback and not address.is_link_local:
            return str(address)
    return name
