"""Classification of network addresses as public or private.

`ipaddress.is_global` alone is not sufficient: Python 3.11 counts 6to4, NAT64 and IPv4-mapped forms
of private addresses as global, so a host name could lead to the machine's own services.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

# https://www.iana.org/assignments/iana-ipv4-special-registry
_SPECIAL_V4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",
            # Azure's platform services for its machines, on an address of a public range.
            # https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16
            "168.63.129.16/32",
        ),
    )
)
# https://www.iana.org/assignments/iana-ipv6-special-registry; the first holds Teredo, the third is
# 6to4: both contain an IPv4 address that some router may still unpack.
_SPECIAL_V6 = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))
# Private networks and this machine: RFC 1918, 6598, 4193.
_INSIDE_V4 = tuple(
    map(
        IPv4Network,
        ("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
    )
)
_INSIDE_V6 = tuple(map(IPv6Network, ("::1/128", "fc00::/7")))
# Metadata services of clouds inside these networks, which give out keys (Alibaba, AWS, Google).
# Those of other clouds are on link-local or special addresses, which are never allowed.
_METADATA_V4 = IPv4Network("100.100.100.0/24")
_METADATA_V6 = tuple(map(IPv6Network, ("fd00:ec2::/32", "fd20:ce::/32")))
_UNICAST_V6 = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
"""Prefix under which a machine with IPv6 only reaches hosts with IPv4 only (RFC 6052)."""


def is_public(address: str) -> bool:
    """Tell whether `address`, in its usual spelling, is one host on the public internet."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    return _is_public_v4(parsed) if isinstance(parsed, IPv4Address) else _is_public_v6(parsed)


def is_public_or_private(address: str) -> bool:
    """Tell whether `address` is one host: public, on a private network, or this machine.

    False for a cloud's metadata service and for IPv6 forms that embed an IPv4 address.
    """
    if is_public(address):
        return True
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv4Address):
        return parsed not in _METADATA_V4 and any(parsed in network for network in _INSIDE_V4)
    is_hidden = parsed.scope_id is not None or any(parsed in one for one in _METADATA_V6)
    return not is_hidden and any(parsed in network for network in _INSIDE_V6)


def _is_public_v4(address: IPv4Address) -> bool:
    return address.is_global and not any(address in network for network in _SPECIAL_V4)


def _is_public_v6(address: IPv6Address) -> bool:
    if address.scope_id is not None:
        return False
    if address in _NAT64:
        return _is_public_v4(IPv4Address(int(address) & 0xFFFF_FFFF))
    return (
        address in _UNICAST_V6
        and address.is_global
        and not any(address in network for network in _SPECIAL_V6)
    )
