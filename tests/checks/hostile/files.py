"""Reading and writing what is none of a block's business."""

from .submission import submissions

READS = {
    "open": "return open(SECRET).read()",
    "os_open": "return os.read(os.open(SECRET, os.O_RDONLY), 1000)",
    "pathlib": "import pathlib; return pathlib.Path(SECRET).read_text()",
    "mmap": """
        import mmap
        with open(SECRET) as file:
            return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)[:]
    """,
    "sendfile_to_stdout": "return os.sendfile(1, os.open(SECRET, os.O_RDONLY), 0, 1000)",
    "copy_file_range": """
        target = os.open("copy", os.O_CREAT | os.O_RDWR)
        os.copy_file_range(os.open(SECRET, os.O_RDONLY), target, 1000)
        return os.pread(target, 1000, 0)
    """,
    "splice_to_stdout": "return os.splice(os.open(SECRET, os.O_RDONLY), 1, 1000)",
    "open_by_libc": """
        import ctypes
        buffer = ctypes.create_string_buffer(1000)
        number = libc().open(SECRET.encode(), 0)
        if number < 0:
            raise OSError(ctypes.get_errno(), "open")
        libc().read(number, buffer, 1000)
        return buffer.value
    """,
    "open_by_system_call": "return os.read(syscall(2, SECRET.encode(), 0, 0), 1000)",
    "openat_from_the_root": """
        root = os.open("/", os.O_PATH)
        return os.read(os.open(SECRET.lstrip("/"), os.O_RDONLY, dir_fd=root), 1000)
    """,
    "openat2": """
        import ctypes
        return os.read(syscall(437, -100, SECRET.encode(), ctypes.create_string_buffer(24), 24), 1000)
    """,
    "path_descriptor_opened_again": """
        handle = os.open(SECRET, os.O_PATH)
        return open(f"/proc/self/fd/{handle}").read()
    """,
    "by_handle": """
        import ctypes
        handle = ctypes.create_string_buffer((128).to_bytes(4, "little") + bytes(132), 136)
        number = ctypes.c_int()
        syscall(303, -100, SECRET.encode(), handle, ctypes.byref(number), 0)
        return os.read(syscall(304, os.open("/", os.O_RDONLY), handle, 0), 1000)
    """,
    "numpy_fromfile": "import numpy; return numpy.fromfile(SECRET, dtype='uint8').tobytes()",
    "numpy_memmap": "import numpy; return bytes(numpy.memmap(SECRET, dtype='uint8', mode='r'))",
    "torch_from_file": "return bytes(torch.from_file(SECRET, size=8, dtype=torch.uint8).tolist())",
    "torch_load": "return torch.load(SECRET, weights_only=False)",
    "linecache": """
        import linecache
        lines = linecache.getlines(SECRET)
        if not lines:
            raise OSError("no lines")
        return lines
    """,
    "executed_as_python": "import runpy; return runpy.run_path(SECRET)",
    "imported_as_a_module": """
        import importlib.machinery, importlib.util
        loader = importlib.machinery.SourceFileLoader("leak", SECRET)
        loader.exec_module(importlib.util.module_from_spec(importlib.util.spec_from_loader("leak", loader)))
    """,
    "sqlite_attach": """
        import sqlite3
        connection = sqlite3.connect(":memory:")
        connection.execute(f"ATTACH '{SECRET}' AS leak")
        return connection.execute("SELECT * FROM leak.sqlite_master").fetchall()
    """,
    "symbolic_link": "os.symlink(SECRET, 'link'); return open('link').read()",
    "hard_link": "os.link(SECRET, 'link'); return open('link').read()",
    "copied": "import shutil; return open(shutil.copyfile(SECRET, 'copy')).read()",
    "moved_here": "os.rename(SECRET, 'mine'); return open('mine').read()",
    "dots": "return open(os.path.join(FOLDER, os.path.relpath(SECRET, FOLDER))).read()",
    "chdir": "os.chdir(os.path.dirname(SECRET)); return open(os.path.basename(SECRET)).read()",
    "chroot": "os.chroot('/'); return open(SECRET).read()",
    "listing": "return os.listdir(os.path.dirname(SECRET))",
    "scandir": "return [entry.name for entry in os.scandir(os.path.dirname(SECRET))]",
    "walk": """
        found = [names for _, _, names in os.walk(os.path.dirname(SECRET))]
        if not found:
            raise OSError("nothing to walk")
        return found
    """,
    "glob": """
        import glob
        found = glob.glob(os.path.dirname(SECRET) + "/*")
        if not found:
            raise OSError("nothing found")
        return found
    """,
    "environment": "return dict(os.environ)",
    "environment_by_libc": """
        import ctypes
        library = libc()
        library.getenv.restype = ctypes.c_char_p
        return library.getenv(b"PRENORM_HOSTILE_TOKEN")
    """,
    "own_proc_environ": "return open('/proc/self/environ').read()",
    "parent_environ": "return open(f'/proc/{PARENT}/environ').read()",
    "server_environ": "return open(f'/proc/{SERVER}/environ').read()",
    "parent_memory": "return os.pread(os.open(f'/proc/{PARENT}/mem', os.O_RDONLY), 100, 0x400000)",
    "parent_root": "return open(f'/proc/{PARENT}/root{SECRET}').read()",
    "parent_descriptors": "return [os.readlink(f'/proc/{PARENT}/fd/{n}') for n in os.listdir(f'/proc/{PARENT}/fd')]",
    "own_root": "return open('/proc/self/root' + SECRET).read()",
    "own_maps": "return open('/proc/self/maps').read()[:500]",
    "all_command_lines": "return [open(f'/proc/{n}/cmdline').read() for n in os.listdir('/proc') if n.isdigit()]",
    "passwords": "return open('/etc/passwd').read()",
    "shadow": "return open('/etc/shadow').read()",
    "kernel_log": "return os.read(os.open('/dev/kmsg', os.O_RDONLY | os.O_NONBLOCK), 1000)",
    "physical_memory": "return os.read(os.open('/dev/mem', os.O_RDONLY), 100)",
    "sysfs": "return os.listdir('/sys/class/net')",
    "our_source": "return open(PACKAGE + '/blocks/transformer.py').read()",
    "our_package": "import prenorm; return prenorm.TransformerBlock",
    "our_package_after_all": """
        del sys.modules["prenorm"]
        sys.path.insert(0, os.path.dirname(PACKAGE))
        import prenorm.blocks.transformer
        return prenorm.blocks.transformer.TransformerBlock
    """,
}

WRITES = {
    "new_file": "open(OUTSIDE + '/new', 'w').write('x')",
    "overwrite": "open(PRECIOUS, 'w').write('x')",
    "append": "open(PRECIOUS, 'a').write('x')",
    "update": "open(PRECIOUS, 'r+').write('x')",
    "truncate_by_path": "os.truncate(PRECIOUS, 0)",
    "truncate_by_open": "os.open(PRECIOUS, os.O_WRONLY | os.O_TRUNC)",
    "truncate_by_reading": "os.open(PRECIOUS, os.O_RDONLY | os.O_TRUNC)",
    "creat": "syscall(85, PRECIOUS.encode(), 0o600)",
    "remove": "os.remove(PRECIOUS)",
    "rename_within": "os.rename(PRECIOUS, PRECIOUS + '.gone')",
    "rename_over": "open('mine', 'w').write('x'); os.rename('mine', PRECIOUS)",
    "exchange": """
        open("mine", "w").write("x")
        syscall(316, -100, b"mine", -100, PRECIOUS.encode(), 2)
    """,
    "hard_link_out": "open('mine', 'w').write('x'); os.link('mine', OUTSIDE + '/link')",
    "hard_link_in": "os.link(PRECIOUS, 'mine'); open('mine', 'w').write('x')",
    "symbolic_link_out": "os.symlink('/etc/passwd', OUTSIDE + '/link')",
    "through_a_symbolic_link": "os.symlink(PRECIOUS, 'link'); open('link', 'w').write('x')",
    "through_a_linked_folder": "os.symlink(OUTSIDE, 'folder'); open('folder/new', 'w').write('x')",
    "make_folder": "os.mkdir(OUTSIDE + '/folder')",
    "remove_folder": "os.rmdir(OUTSIDE + '/empty')",
    "remove_tree": "import shutil; shutil.rmtree(OUTSIDE)",
    "make_fifo": "os.mkfifo(OUTSIDE + '/fifo')",
    "make_device": "os.mknod(OUTSIDE + '/device', 0o600 | 0o020000, os.makedev(1, 3))",
    "make_device_here": "os.mknod('device', 0o600 | 0o060000, os.makedev(254, 0)); os.open('device', os.O_RDONLY)",
    "chmod": "os.chmod(PRECIOUS, 0o777)",
    "chmod_of_the_folder": "os.chmod(FOLDER, 0o777)",
    "fchmod": "os.fchmod(os.open(FOLDER, os.O_RDONLY), 0o777)",
    "chown": "os.chown(PRECIOUS, 65534, 65534)",
    "utime": "os.utime(PRECIOUS, (0, 0))",
    "utime_under_test": "os.utime(__file__, (0, 0))",
    "extended_attribute": "os.setxattr(PRECIOUS, 'user.hostile', b'x')",
    "itself": "open(__file__, 'a').write('# changed')",
    "beside_itself": "open(FOLDER + '/other.py', 'w').write('x = 1')",
    "bytecode": "open(os.path.dirname(torch.__file__) + '/hostile.py', 'w').write('x')",
    "torch_itself": "open(torch.__file__, 'a').write('# changed')",
    "shared_memory": "open('/dev/shm/prenorm-hostile', 'w').write('x')",
    "shm_open": """
        import ctypes
        number = libc().shm_open(b"/prenorm-hostile", os.O_CREAT | os.O_RDWR, 0o600)
        if number < 0:
            raise OSError(ctypes.get_errno(), "shm_open")
    """,
    "multiprocessing_shared_memory": """
        from multiprocessing import shared_memory
        shared_memory.SharedMemory("prenorm-hostile", create=True, size=1000)
    """,
    "shared_tensor": "return torch.ones(1000).share_memory_().sum()",
    "common_temporary_folder": "open('/tmp/prenorm-hostile', 'w').write('x')",
    "home": "open(os.path.expanduser('~root/prenorm-hostile'), 'w').write('x')",
    "torch_save": "torch.save(torch.ones(3), OUTSIDE + '/new')",
    "torch_from_file_shared": "torch.from_file(OUTSIDE + '/new', shared=True, size=100)",
    "numpy_memmap": "import numpy; numpy.memmap(PRECIOUS, dtype='uint8', mode='r+')[:] = 0",
    "sqlite": "import sqlite3; sqlite3.connect(OUTSIDE + '/new').execute('CREATE TABLE t (x)')",
    "unnamed_then_linked": """
        number = os.open(".", os.O_TMPFILE | os.O_RDWR)
        os.link(f"/proc/self/fd/{number}", OUTSIDE + "/new", follow_symlinks=True)
    """,
    "parent_memory": "os.open(f'/proc/{PARENT}/mem', os.O_WRONLY)",
    "kernel_setting": "open('/proc/sys/kernel/core_pattern', 'w').write('|/bin/sh')",
    "oom_score": "open(f'/proc/{PARENT}/oom_score_adj', 'w').write('1000')",
    "terminal": "open('/dev/tty', 'w').write('x')",
    "disk": "os.open('/dev/vda', os.O_RDWR)",
    "remount": """
        import ctypes
        if libc().mount(None, b"/", None, 32 | 4096, None):
            raise OSError(ctypes.get_errno(), "mount")
        open(OUTSIDE + "/new", "w").write("x")
    """,
}

ALL = submissions("reads", READS) + submissions("writes", WRITES)
