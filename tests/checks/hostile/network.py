"""Reaching anyone: the attacker's server would be the canaries that listen on this machine."""

from .submission import submissions

CODES = {
    "tcp": "import socket; socket.create_connection(('127.0.0.1', TCP), 1).send(b'x')",
    "tcp_to_any_address": "import socket; socket.create_connection(('0.0.0.0', TCP), 1).send(b'x')",
    "tcp_without_waiting": """
        import socket
        one = socket.socket()
        one.setblocking(False)
        code = one.connect_ex(("127.0.0.1", TCP))
        if code not in (0, 115):
            raise OSError(code, "connect")
    """,
    "tcp_fast_open": """
        import socket
        socket.socket().sendto(b"x", 0x20000000, ("127.0.0.1", TCP))
    """,
    "multipath_tcp": "import socket; socket.socket(proto=262).connect(('127.0.0.1', TCP))",
    "tcp6": "import socket; socket.socket(socket.AF_INET6).connect(('::ffff:127.0.0.1', TCP))",
    "udp": "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', UDP))",
    "udp6": (
        "import socket; socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b'x', ('::ffff:127.0.0.1', UDP))"
    ),
    "udp_broadcast": """
        import socket
        one = socket.socket(type=socket.SOCK_DGRAM)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        one.sendto(b"x", ("255.255.255.255", UDP))
    """,
    "unix": "import socket; one = socket.socket(socket.AF_UNIX); one.connect(UNIX); one.send(b'x')",
    "unix_datagram": """
        import socket
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"x", UNIX + ".datagram")
    """,
    "unix_by_symbolic_link": """
        import socket
        os.symlink(UNIX, "door")
        socket.socket(socket.AF_UNIX).connect("door")
    """,
    "abstract": "import socket; one = socket.socket(socket.AF_UNIX); one.connect('\\0' + ABSTRACT); one.send(b'x')",
    "abstract_listener": "import socket; socket.socket(socket.AF_UNIX).bind('\\0' + ABSTRACT + '.other')",
    "raw": "import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)",
    "ping": "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)",
    "packet": "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "netlink": "import socket; return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).getsockname()",
    "vsock": "import socket; socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)",
    "kernel_crypto": "import socket; socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)",
    "server": "import socket; return socket.create_server(('', 0)).getsockname()",
    "http": "import urllib.request; return urllib.request.urlopen(f'http://127.0.0.1:{TCP}', timeout=1).read()",
    "http_client": "import http.client; http.client.HTTPConnection('127.0.0.1', TCP, timeout=1).request('GET', '/')",
    "name_lookup": "import socket; return socket.getaddrinfo('example.org', 80)",
    "asyncio": "import asyncio; asyncio.run(asyncio.open_connection('127.0.0.1', TCP))",
    "socket_by_system_call": "return syscall(41, 2, 1, 0)",
    "socket_by_libc": """
        import ctypes
        if libc().socket(2, 2, 0) < 0:
            raise OSError(ctypes.get_errno(), "socket")
    """,
    "send_on_the_pipes": "import socket; socket.socket(fileno=4).send(b'x')",
    "descriptors_of_others": """
        import socket
        for number in range(3, 64):
            try:
                return socket.socket(fileno=number).getpeername()
            except OSError:
                pass
        raise OSError("no socket was left open")
    """,
    "torch_distributed": """
        import torch.distributed as distributed
        distributed.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{TCP}", rank=1, world_size=2,
            timeout=__import__("datetime").timedelta(seconds=1),
        )
    """,
    "torch_hub": "torch.hub.download_url_to_file(f'http://127.0.0.1:{TCP}/x', 'x')",
    "hugging_face": """
        import transformers
        return transformers.AutoConfig.from_pretrained("gpt2")
    """,
}

ALL = submissions("network", CODES)
