"""The address by which other machines know this one, for workers that were not told theirs."""

import functools
import ipaddress
import socket


@functools.cache
def own_address(bound: str) -> str:
    """The address that this machine's name stands for; the name where it is no use.

    `bound` is what the server listens on: 0.0.0.0 or ::, which are all addresses of one kind only. In a container the
    name stands for the container's own address, also where others could not look it up.
    """
    name, family = socket.gethostname(), socket.AF_INET6 if ":" in bound else socket.AF_INET
    try:
        found = socket.getaddrinfo(name, None, family, socket.SOCK_STREAM)
    except OSError:
        return name
    for address in (ipaddress.ip_address(str(sockaddr[0]).partition("%")[0]) for *_, sockaddr in found):
        if not address.is_loopback and not address.is_link_local:
            return str(address)
    return name
