"""New processes and threads: bombs, daemons, and whatever stays behind."""

from .submission import submissions

_DAEMON = "import time\nwhile True: time.sleep(0.1)\n"

CODES = {
    "fork_bomb": "while True: os.fork()",
    "fork_bomb_by_libc": "while libc().fork() >= 0: pass\nraise OSError('no more')",
    "fork_bomb_by_system_call": "while True: syscall(57)",
    "vfork_by_system_call": "return syscall(58)",
    "clone_by_system_call": "return syscall(56, 17, 0, 0, 0, 0)",
    "clone_with_new_namespaces": "return syscall(56, 17 | 0x10000000 | 0x20000000, 0, 0, 0, 0)",
    "clone3": """
        import ctypes
        return syscall(435, ctypes.create_string_buffer(bytes(32) + (17).to_bytes(8, "little") + bytes(24), 64), 64)
    """,
    "daemon": """
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                import time
                while True:
                    time.sleep(0.1)
            os._exit(0)
    """,
    "subprocess": "import subprocess; return subprocess.run(['/bin/sleep', '98765'])",
    "subprocess_new_session": (
        "import subprocess; return subprocess.Popen(['/bin/sleep', '98765'], start_new_session=True).pid"
    ),
    "subprocess_python": "import subprocess; return subprocess.Popen([sys.executable, '-c', 'while True: pass']).pid",
    "os_system": "code = os.system('sleep 98765 &')\nif code: raise OSError(code)",
    "os_popen": "return os.popen('id').read()",
    "posix_spawn": "return os.posix_spawn('/bin/sleep', ['sleep', '98765'], {})",
    "forkpty": "return os.forkpty()",
    "pty_spawn": "import pty; return pty.spawn('/bin/sh')",
    "multiprocessing_fork": """
        import multiprocessing, time
        process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(98765,))
        process.start()
    """,
    "multiprocessing_spawn": """
        import multiprocessing, time
        multiprocessing.get_context("spawn").Process(target=time.sleep, args=(98765,)).start()
    """,
    "multiprocessing_forkserver": """
        import multiprocessing, time
        multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(98765,)).start()
    """,
    "process_pool": """
        from concurrent.futures import ProcessPoolExecutor
        return list(ProcessPoolExecutor(4).map(abs, range(4)))
    """,
    "asyncio_subprocess": """
        import asyncio
        asyncio.run(asyncio.create_subprocess_exec("/bin/sleep", "98765"))
    """,
    "data_loader_workers": """
        from torch.utils.data import DataLoader
        return list(DataLoader([1.0, 2.0], num_workers=2))
    """,
    "torch_multiprocessing": """
        import torch.multiprocessing
        torch.multiprocessing.start_processes(print, nprocs=2, start_method="fork")
    """,
    "thread_left_behind": """
        import threading, time
        threading.Thread(target=time.sleep, args=(98765,)).start()
    """,
    "daemon_thread_that_writes_replies": """
        import threading
        def flood():
            while True:
                os.write(4, b"PRN1" + bytes(12))
        threading.Thread(target=flood, daemon=True).start()
    """,
    "threads_without_end": """
        import _thread, time
        while True:
            _thread.start_new_thread(time.sleep, (98765,))
    """,
    "timer_thread": "import threading; threading.Timer(0.1, os._exit, (0,)).start()",
    "thread_pool": """
        from concurrent.futures import ThreadPoolExecutor
        return list(ThreadPoolExecutor(64).map(abs, range(64)))
    """,
    "pthread_create": """
        import ctypes
        start = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(lambda _: 0)
        code = libc().pthread_create(ctypes.byref(ctypes.c_void_p()), None, start, None)
        if code:
            raise OSError(code, os.strerror(code))
    """,
    "clone_of_a_thread": "return syscall(56, 0x10f00, 0, 0, 0, 0)",
}

ALL = submissions("processes", CODES)
