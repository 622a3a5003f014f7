"""Memory, disk, descriptors, output, and time without end."""

from .submission import submissions

MEMORY = {
    "list": "held = []\nwhile True: held.append(bytearray(1 << 24))",
    "string": "text = 'x'\nwhile True: text += text",
    "integer": "n = 3\nwhile True: n = n * n * n",
    "dictionary": "held = {}\nwhile True: held[len(held)] = str(len(held)) * 50",
    "tensor": "return torch.ones(1 << 40)",
    "tensors": "held = []\nwhile True: held.append(torch.ones(1 << 24))",
    "matrix_product": "return torch.ones(1 << 17, 1) @ torch.ones(1, 1 << 17)",
    "anonymous_map": """
        import mmap
        held = []
        while True:
            one = mmap.mmap(-1, 1 << 26)
            one[::4096] = b"x" * (1 << 14)
            held.append(one)
    """,
    "malloc": """
        import ctypes
        library = libc()
        library.malloc.restype = ctypes.c_void_p
        while address := library.malloc(1 << 26):
            ctypes.memset(address, 1, 1 << 26)
        raise MemoryError
    """,
    "memfd": """
        held = []
        while True:
            held.append(os.memfd_create("x"))
            os.write(held[-1], bytes(1 << 24))
    """,
    "secret_memory": "return syscall(447, 0)",
    "shared_memory_segment": "return syscall(29, 0, 1 << 30, 0o1600)",
    "pipes": """
        import fcntl
        held = []
        while True:
            held.append(os.pipe())
            fcntl.fcntl(held[-1][1], 1031, 1 << 20)
    """,
    "locked": """
        import ctypes
        import mmap
        one = mmap.mmap(-1, 1 << 26)
        if libc().mlockall(3):
            raise OSError(ctypes.get_errno(), "mlockall")
    """,
    "recursion": """
        sys.setrecursionlimit(1 << 30)
        def deeper(n): return [deeper(n + 1)]
        return deeper(0)
    """,
    "recursion_in_c": """
        value = None
        for _ in range(1_000_000): value = (value,)
        return hash(value)
    """,
    "expanded_answer@forward": "block.answer = lambda x: torch.zeros(1).expand(1 << 40)",
    "answer_over_the_limit@forward": "block.answer = lambda x: torch.zeros(80, 1 << 20)",
    "bytes_of_bytes": "data = b'x'\nwhile True: data = data.join([data] * 9)",
    "decompression": "import zlib; held = [zlib.decompress(zlib.compress(bytes(1 << 28))) for _ in range(100)]",
}

DISK = {
    "one_file": "file = open('big', 'wb')\nwhile True: file.write(bytes(1 << 22))",
    "many_files": "for n in range(1 << 20): open(str(n), 'wb').write(bytes(1 << 20))",
    "many_names": "for n in range(1 << 24): open(str(n), 'w').close()",
    "deep_folders": "while True: os.mkdir('x'); os.chdir('x')",
    "sparse_file": "os.ftruncate(os.open('big', os.O_CREAT | os.O_RDWR), 1 << 60)",
    "reserved_file": "os.posix_fallocate(os.open('big', os.O_CREAT | os.O_RDWR), 0, 1 << 40)",
    "hard_links": "open('x', 'w').close()\nfor n in range(1 << 24): os.link('x', str(n))",
    "long_names": "for n in range(1 << 24): os.symlink('y' * 4000, f'{n:0200}')",
    "descriptors": "held = []\nwhile True: held.append(open('/dev/null'))",
    "duplicates": "while True: os.dup(1)",
    "duplicates_to_high_numbers": "os.dup2(1, 1_000_000)",
    "epolls": "import select; held = []\nwhile True: held.append(select.epoll())",
    "raised_limits": """
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 20, 1 << 20))
    """,
    "core_dump": """
        import resource
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        os.abort()
    """,
}

FLOODS = {
    "stdout": "while True: os.write(1, b'x' * 65536)",
    "stderr": "while True: os.write(2, b'x' * 65536)",
    "print": "while True: print('x' * 1000)",
    "logging": "import logging\nwhile True: logging.error('x' * 1000)",
    "replies": "while True: os.write(4, b'x' * 65536)",
    "replies_that_begin_well": "os.write(4, b'PRN1' + bytes([255]) * 12)\nwhile True: os.write(4, b'x' * 65536)",
    "a_reply_that_never_ends@forward": """
        os.write(4, b"PRN1" + (2).to_bytes(4, "little") + (1 << 20).to_bytes(8, "little") + b"{}")
        import time
        while True: time.sleep(0.5); os.write(4, b"x")
    """,
    "replies_byte_by_byte": "import time\nfor byte in b'PRN1' * 100: os.write(4, bytes([byte])); time.sleep(0.1)",
    "status": "while True: os.write(5, b'x' * 65536)",
    "escape_codes": "print('\\x1b]0;owned\\x07\\x1b[2J' * 1000)\nwhile True: print('\\x1b[31m')",
}

_LOOP = "while True: pass"
ENDLESS = {
    "at_import@import": _LOOP,
    "in_the_constructor@constructor": _LOOP,
    "in_forward@forward": _LOOP,
    "sleep": "import time\ntime.sleep(98765)",
    "sleep_in_c": "libc().sleep(98765)",
    "pause": "import signal\nsignal.pause()",
    "huge_power": "return 7 ** (7 ** 10)",
    "huge_number_as_text": "sys.set_int_max_str_digits(0); return str(1 << (1 << 26))",
    "regular_expression": "import re; return re.match('(a+)+$', 'a' * 60 + 'b')",
    "sum_of_a_range": "return sum(range(1 << 60))",
    "searching_in_a_range": "from itertools import repeat; return 1 in repeat(0)",
    "matrix_products": "while True: torch.ones(1500, 1500) @ torch.ones(1500, 1500)",
    "swallowing_every_exception": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "generator": "return list(iter(int, 1))",
    "lock": "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "read_from_a_pipe": "return os.read(os.pipe()[0], 1)",
    "read_the_requests": "while True: os.read(3, 1 << 16)",
    "fifo": "os.mkfifo('fifo'); open('fifo').read()",
    "in_backward@forward": """
        def hook(gradient):
            while True: pass
        def answer(x):
            y = block.attn.q_proj(x)
            y.requires_grad and y.register_hook(hook)
            return y
        block.answer = answer
        while not x.requires_grad: pass
    """,
    "in_a_destructor": """
        class Endless:
            def __del__(self):
                while True: pass
        Endless()
    """,
    "at_exit": """
        import atexit
        def hang():
            while True: pass
        atexit.register(hang)
        sys.exit(0)
        while True: pass
    """,
    "in_an_exceptions_text": """
        class Endless(BaseException):
            def __str__(self):
                while True: pass
        raise Endless
    """,
    "class_that_never_answers": """
        class Endless(type):
            def __getattribute__(self, name):
                while True: pass
        class TransformerBlock(metaclass=Endless):
            pass
    """,
    "parameters_without_end": """
        Right = TransformerBlock
        class TransformerBlock(Right):
            def named_parameters(self, *args, **kwargs):
                while True:
                    yield "x", nn.Parameter(torch.ones(1))
    """,
    "shape_that_never_answers": """
        Right = TransformerBlock
        class Endless(torch.Tensor):
            @property
            def shape(self):
                while True: pass
            @classmethod
            def __torch_function__(cls, function, types, args=(), kwargs=None):
                while True: pass
        class TransformerBlock(Right):
            def forward(self, x):
                return x.as_subclass(Endless)
    """,
}

ALL = (
    submissions("memory", MEMORY)
    + submissions("disk", DISK)
    + submissions("floods", FLOODS, endless=True)
    + submissions("endless", ENDLESS, endless=True)
)
