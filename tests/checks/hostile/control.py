"""Signals, exits, and system calls that break out."""

from .submission import submissions

SIGNALS = {
    "kill_the_parent": "import signal; os.kill(PARENT, signal.SIGKILL)",
    "kill_the_server": "import signal; os.kill(SERVER, signal.SIGKILL)",
    "kill_a_stranger": "import signal; os.kill(VICTIM, signal.SIGKILL)",
    "kill_the_keeper": "import signal; os.kill(os.getppid(), signal.SIGKILL)",
    "kill_everyone": "import signal; os.kill(-1, signal.SIGKILL)",
    "kill_the_own_group": "import signal; os.kill(0, signal.SIGTERM)",
    "kill_the_servers_group": "import signal; os.killpg(SERVER, signal.SIGKILL)",
    "stop_the_parent": "import signal; os.kill(PARENT, signal.SIGSTOP)",
    "kill_by_thread_id": "return syscall(200, VICTIM, 9)",
    "kill_by_thread_group": "return syscall(234, VICTIM, VICTIM, 9)",
    "queue_a_signal": """
        import ctypes
        return syscall(129, VICTIM, 9, ctypes.create_string_buffer(128))
    """,
    "kill_by_pidfd": "import signal; signal.pidfd_send_signal(os.pidfd_open(VICTIM), signal.SIGKILL)",
    "kill_by_pidfd_call": "return syscall(424, syscall(434, VICTIM, 0), 9, None, 0)",
    "owner_of_a_descriptor": """
        import fcntl
        reading, writing = os.pipe()
        fcntl.fcntl(reading, 8, VICTIM)
        fcntl.fcntl(reading, 10, 9)
        fcntl.fcntl(reading, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
        os.write(writing, b"x")
    """,
    "owner_by_ioctl": """
        import fcntl, struct
        fcntl.ioctl(os.pipe()[0], 0x8901, struct.pack("i", VICTIM))
    """,
    "ignore_everything": """
        import signal
        for number in signal.valid_signals() - {9, 19}:
            signal.signal(number, signal.SIG_IGN)
        while True: pass
    """,
    "handlers_that_go_on": """
        import signal, time
        for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU, signal.SIGSEGV):
            signal.signal(number, lambda *_: None)
        while True: time.sleep(0.01)
    """,
    "block_every_signal": """
        import signal
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True: pass
    """,
    "alarm": "import signal, time; signal.alarm(1); time.sleep(3)",
    "timer_with_an_exception": """
        import signal
        def late(*_): raise SystemExit(0)
        signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, 0.3, 0.01)
    """,
    "death_signal_switched_off": "return libc().prctl(1, 0, 0, 0, 0) or syscall(157, 1, 0, 0, 0, 0)",
    "kill_itself": "import signal; os.kill(os.getpid(), signal.SIGKILL)",
}

EXITS = {
    "sys_exit@import": "sys.exit(0)",
    "sys_exit_in_the_constructor": """
        Right = TransformerBlock
        class TransformerBlock(Right):
            def __init__(self, *args, **kwargs):
                sys.exit(0)
    """,
    "sys_exit_in_forward": """
        Right = TransformerBlock
        class TransformerBlock(Right):
            def forward(self, x):
                sys.exit(0)
    """,
    "exit_at_once@import": "os._exit(0)",
    "exit_at_once_later@constructor": "os._exit(0)",
    "exit_by_libc@forward": "libc().exit(0)",
    "quick_exit": "libc().quick_exit(0)",
    "exit_by_system_call": "syscall(231, 0)",
    "exit_of_the_thread": "syscall(60, 0)",
    "abort": "os.abort()",
    "null_pointer": "import ctypes; ctypes.string_at(0)",
    "wild_write": "import ctypes; ctypes.memset(0x1000, 0, 1 << 30)",
    "illegal_instruction": """
        import ctypes, mmap
        code = mmap.mmap(-1, 4096, prot=7)
        code.write(b"\\x0f\\x0b")
        ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
    """,
    "thirty_two_bit_call": """
        import ctypes, mmap
        code = mmap.mmap(-1, 4096, prot=7)
        code.write(bytes.fromhex("b802000000cd80c3"))  # mov eax, 2 (fork); int 0x80; ret
        return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
    """,
    "x32_call": "return syscall(0x40000000 + 57)",
    "stack_overflow": """
        import ctypes
        deeper = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: deeper())
        sys.setrecursionlimit(1 << 30)
        return deeper()
    """,
    "exec": "os.execv('/bin/true', ['true'])",
    "exec_python": "os.execv(sys.executable, [sys.executable, '-c', 'print(1)'])",
    "exec_of_a_memory_file": """
        number = os.memfd_create("x")
        os.write(number, open("/bin/true", "rb").read())
        os.execve(number, ["x"], {})
    """,
    "exec_of_an_own_file": """
        open("run", "w").write("#!/bin/sh\\nexit 0\\n")
        os.chmod("run", 0o755)
        os.execv("./run", ["run"])
    """,
    "keyboard_interrupt": "raise KeyboardInterrupt",
    "generator_exit@forward": "raise GeneratorExit",
    "close_the_pipes": "for number in range(64): os.close(number) if number != 1 else None",
    "close_the_replies": "os.close(4)",
    "raise_in_answer": """
        Right = TransformerBlock
        class TransformerBlock(Right):
            def forward(self, x):
                raise type("Passed", (BaseException,), {"__str__": lambda self: 1 / 0})
    """,
    "strange_syntax_error": """
        Right = TransformerBlock
        class TransformerBlock(Right):
            def forward(self, x):
                error = SyntaxError("x")
                error.filename, error.lineno, error.text = object(), object(), print
                raise error
    """,
}

ESCAPES = {
    "unshare": "return syscall(272, 0x10000000)",
    "unshare_network": "return syscall(272, 0x40000000)",
    "setns_of_the_parent": "return syscall(308, os.open(f'/proc/{PARENT}/ns/net', os.O_RDONLY), 0)",
    "setns_by_pidfd": "return syscall(308, syscall(434, VICTIM, 0), 0x40000000)",
    "mount": "return syscall(165, b'none', b'/', b'tmpfs', 0, None)",
    "unmount": "return syscall(166, b'/', 2)",
    "unmount_its_folder": "return syscall(166, os.getcwd().encode(), 2)",
    "new_mount_calls": "return syscall(432, syscall(430, b'tmpfs', 0), 0, 0)",
    "open_tree": "return syscall(428, -100, b'/', 1)",
    "mount_setattr": "return syscall(442, -100, b'/', 0, bytes(32), 32)",
    "pivot_root": "return syscall(155, b'.', b'.')",
    "chroot_and_climb": """
        here = os.open("/", os.O_RDONLY)
        os.mkdir("jail")
        os.chroot("jail")
        os.fchdir(here)
        for _ in range(50): os.chdir("..")
        return open("." + SECRET).read()
    """,
    "ptrace_the_parent": "return syscall(101, 16, PARENT, 0, 0)",
    "ptrace_the_keeper": "return syscall(101, 16, os.getppid(), 0, 0)",
    "ptrace_me": "return syscall(101, 0, 0, 0, 0)",
    "read_the_parents_memory": """
        import ctypes
        buffer = ctypes.create_string_buffer(8)
        vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
        return syscall(310, PARENT, vector, 1, (ctypes.c_void_p * 2)(0x400000, 8), 1, 0)
    """,
    "write_the_servers_memory": """
        import ctypes
        buffer = ctypes.create_string_buffer(8)
        vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
        return syscall(311, SERVER, vector, 1, (ctypes.c_void_p * 2)(0x400000, 8), 1, 0)
    """,
    "descriptor_of_the_parent": "return syscall(438, syscall(434, PARENT, 0), 3, 0)",
    "compare_processes": "return syscall(312, os.getpid(), PARENT, 0, 0, 0)",
    "add_a_key": "return syscall(248, b'user', b'prenorm-hostile', b'x', 1, -3)",
    "read_the_keys": "return syscall(250, 0, -3, 0)",
    "bpf": "import ctypes; return syscall(321, 0, ctypes.create_string_buffer(128), 128)",
    "io_uring": "import ctypes; return syscall(425, 8, ctypes.create_string_buffer(120))",
    "perf": "import ctypes; return syscall(298, ctypes.create_string_buffer(b'\\0' * 4 + b'x', 128), 0, -1, -1, 0)",
    "userfaultfd": "return syscall(323, 0)",
    "message_queue": "return syscall(240, b'prenorm-hostile', os.O_CREAT | os.O_RDWR, 0o600, None)",
    "system_v_messages": "return syscall(68, 4242, 0o1600)",
    "system_v_semaphores": "return syscall(64, 4242, 1, 0o1600)",
    "load_a_module": "return syscall(175, b'x', 1, b'')",
    "kernel_log": "return syscall(103, 3, None, 0)",
    "set_the_clock": "import time; time.clock_settime(time.CLOCK_REALTIME, 0)",
    "set_the_host_name": "import socket; socket.sethostname('owned')",
    "priority_of_others": "os.setpriority(os.PRIO_PROCESS, PARENT, 19)",
    "own_priority": "return os.nice(-20)",
    "affinity_of_others": "os.sched_setaffinity(PARENT, {0})",
    "real_time": "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
    "limits_of_others": "import resource; resource.prlimit(PARENT, resource.RLIMIT_NOFILE, (3, 3))",
    "become_root": "os.setresuid(0, 0, 0); return open(SECRET).read()",
    "capabilities": """
        import ctypes, struct
        header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
        return syscall(126, header, ctypes.create_string_buffer(b"\\xff" * 24))
    """,
    "looser_seccomp": "import ctypes; return syscall(317, 1, 0, ctypes.create_string_buffer(16))",
    "another_landlock": "import ctypes; return syscall(444, ctypes.create_string_buffer(b'\\x01' + bytes(7)), 8, 0)",
    "dumpable": "return syscall(157, 4, 1, 0, 0, 0)",
    "seccomp_by_prctl": "return syscall(157, 22, 2, 0, 0, 0)",
    "personality": "return syscall(135, 0x0040000)",
    "port_access": "return syscall(172, 3)",
    "remount_of_the_past": "os.fchdir(os.open('..', os.O_RDONLY)); return os.listdir(SECRET.rpartition('/')[0])",
    "proc_mount": "os.mkdir('p'); return syscall(165, b'proc', b'p', b'proc', 0, None)",
}

ALL = submissions("signals", SIGNALS) + submissions("exits", EXITS) + submissions("escapes", ESCAPES)
