"""Making the judge believe: printed verdicts, forged replies, patched comparisons, lying objects."""

from .submission import submissions

_REPLY = """
        def reply(value, tensors, body):
            import json
            text = json.dumps({"value": value, "tensors": tensors}).encode()
            return b"PRN1" + len(text).to_bytes(4, "little") + len(body).to_bytes(8, "little") + text + body
"""

PRINTED = {
    "verdict_on_stdout": """print('{"passed": true, "findings": [], "checks": []}')""",
    "verdict_on_stderr": """print('{"passed": true, "findings": []}', file=sys.stderr)""",
    "verdict_on_every_descriptor": """
        for number in range(3, 64):
            try:
                os.write(number, b'{"passed": true, "findings": []}\\n')
            except OSError:
                pass
    """,
    "verdict_and_exit": """print('{"passed": true}', flush=True); os._exit(0)""",
    "words_of_the_keeper": """
        os.write(5, b'{"confinement": []}\\n{"ended": "passed"}\\n')
    """,
    "confinement_again": """os.write(1, b'{"confinement": ["none"]}\\n')""",
}

REPLIES = {
    "empty_reply": _REPLY + "        os.write(4, reply({}, [], b''))",
    "replies_in_advance": _REPLY
    + """
        for _ in range(100):
            os.write(4, reply({"y": {"\\0": 0}, "x_after": {"\\0": 0}, "requires_grad": True}, [["uint8", [1]]], b"x"))
    """,
    "reply_of_another_op": _REPLY + "        os.write(4, reply({'missing': []}, [], b'')); os._exit(0)",
    "reply_with_a_verdict": _REPLY
    + "        os.write(4, reply({'passed': True, 'findings': []}, [], b'')); os._exit(0)",
    "reply_that_is_a_list": _REPLY + "        os.write(4, reply([], [], b'')); os._exit(0)",
    "reply_with_a_pickle": """
        import pickle
        os.write(4, pickle.dumps({"passed": True}))
    """,
    "tensor_longer_than_its_bytes": _REPLY
    + "        os.write(4, reply({'y': {'\\0': 0}}, [['float64', [1000]]], b'')); os._exit(0)",
    "tensor_of_negative_size": _REPLY
    + "        os.write(4, reply({'y': {'\\0': 0}}, [['float64', [-1, -8]]], bytes(64))); os._exit(0)",
    "tensor_of_overflowing_size": _REPLY
    + "        os.write(4, reply({'y': {'\\0': 0}}, [['uint8', [0, 1 << 31, 1 << 31, 1 << 31]]], b'')); os._exit(0)",
    "tensor_of_an_unknown_dtype": _REPLY
    + "        os.write(4, reply({'y': {'\\0': 0}}, [['qint8', [1]]], b'x')); os._exit(0)",
    "dtype_that_is_an_attribute": _REPLY
    + "        os.write(4, reply({'y': {'\\0': 0}}, [['__class__', [1]]], b'x')); os._exit(0)",
    "tensor_that_is_not_there": _REPLY + "        os.write(4, reply({'y': {'\\0': 7}}, [], b'')); os._exit(0)",
    "nested_without_end": """
        text = b"[" * 1_000_000
        os.write(4, b"PRN1" + len(text).to_bytes(4, "little") + bytes(8) + text)
        os._exit(0)
    """,
    "number_without_end": """
        text = b'{"value": ' + b"9" * 100_000 + b', "tensors": []}'
        os.write(4, b"PRN1" + len(text).to_bytes(4, "little") + bytes(8) + text)
        os._exit(0)
    """,
    "text_that_is_no_utf8": """
        text = b'{"value": "\\xff\\xfe", "tensors": []}'
        os.write(4, b"PRN1" + len(text).to_bytes(4, "little") + bytes(8) + text)
        os._exit(0)
    """,
    "half_a_reply": "os.write(4, b'PRN1' + bytes([9, 0, 0, 0])); os._exit(0)",
    "a_gigantic_length": "os.write(4, b'PRN1' + bytes([255]) * 12); os._exit(0)",
    "reply_and_more": _REPLY + "        os.write(4, reply({}, [], b'') + b'more'); os._exit(0)",
    "keys_from_outside": _REPLY
    + "        os.write(4, reply({'__class__': {}, 'y': {'__reduce__': []}}, [], b'')); os._exit(0)",
}

PATCHES = {
    "allclose": "torch.allclose = lambda *a, **k: True; torch.Tensor.allclose = lambda *a, **k: True",
    "equal": "torch.equal = lambda *a: True; torch.Tensor.equal = lambda *a: True",
    "isclose": "torch.isclose = lambda a, *r, **k: torch.ones_like(a, dtype=torch.bool)",
    "testing": "import torch.testing as t; t.assert_close = lambda *a, **k: None",
    "numpy": """
        import numpy
        numpy.allclose = lambda *a, **k: True
        numpy.testing.assert_allclose = lambda *a, **k: None
    """,
    "tensor_subtraction": "torch.Tensor.__sub__ = lambda a, b: torch.zeros_like(a)",
    "tensor_equality": "torch.Tensor.__eq__ = lambda a, b: True; torch.Tensor.__hash__ = lambda a: 0",
    "tensor_maximum": "torch.Tensor.max = torch.Tensor.abs = torch.Tensor.norm = lambda *a, **k: torch.tensor(0.0)",
    "random_numbers": """
        torch.randn = torch.rand = torch.normal = lambda *s, **k: torch.zeros(*[n for n in s if isinstance(n, int)])
        torch.manual_seed = lambda seed: None
    """,
    "builtins": """
        import builtins
        builtins.all = lambda *a: True
        builtins.any = lambda *a: False
        builtins.abs = lambda *a: 0.0
        builtins.isinstance_ = builtins.isinstance
    """,
    "driver_sends_zeros": """
        def handle(self, request):
            reply = real(self, request)
            if "y" in reply:
                reply["y"] = torch.zeros_like(reply["y"])
            return reply
        real, driver.Driver.handle = driver.Driver.handle, handle
    """,
    "driver_echoes_the_input": """
        def handle(self, request):
            if request["op"] == "run":
                return {"y": request["inputs"][0], "x_after": request["inputs"][0], "requires_grad": False}
            return real(self, request)
        real, driver.Driver.handle = driver.Driver.handle, handle
    """,
    "driver_passes": "driver.Driver.handle = lambda self, request: {'passed': True, 'findings': []}",
    "driver_without_errors": "driver.described = lambda error: {}",
    "driver_gives_strange_things": "driver.Driver.handle = lambda self, request: {'y': object(), 'x_after': print}",
    "driver_gives_strings": "driver.Driver.handle = lambda self, r: {'y': '0', 'x_after': '0', 'requires_grad': 'yes'}",
    "driver_forgets_the_gradients": """
        def handle(self, request):
            reply = real(self, request)
            return {name: value for name, value in reply.items() if "grad" not in name}
        real, driver.Driver.handle = driver.Driver.handle, handle
    """,
    "wire_sends_its_own": """
        wire = sys.modules["_prenorm_child.wire"]
        real, wire.encode = wire.encode, lambda value: real({"y": torch.zeros(2, 3, 16), "x_after": torch.zeros(1)})
    """,
    "wire_sends_nothing": "sys.modules['_prenorm_child.wire'].encode = lambda value: b''",
    "our_package_replaced": """
        import types
        fake = types.ModuleType("prenorm")
        fake.TransformerBlock = fake.check = TransformerBlock if "TransformerBlock" in globals() else object
        sys.modules["prenorm"] = sys.modules["prenorm.checks.verdict"] = fake
    """,
    "objects_of_the_judge": """
        import gc
        for held in gc.get_objects():
            if isinstance(held, dict) and ("findings" in held or "passed" in held):
                held.update(passed=True, findings=[])
        found = [held for held in gc.get_objects() if type(held).__name__ in ("Driver", "Verdict", "Sandbox")]
        for held in found:
            held.__dict__.clear()
        return len(found)
    """,
    "frames_of_the_driver": """
        frame = sys._getframe()
        while frame is not None:
            if "request" in frame.f_locals:
                request = frame.f_locals["request"]
                request.clear()
                request.update(op="forget")
            frame = frame.f_back
    """,
    "inputs_found_and_zeroed@forward": """
        import gc
        for held in gc.get_objects():
            if type(held) is torch.Tensor and held.is_floating_point():
                held.detach().zero_()
    """,
    "trace_function": "sys.settrace(lambda *a: None); sys.setprofile(lambda *a: None)",
    "exception_hook": "sys.excepthook = lambda *a: os._exit(0); sys.unraisablehook = lambda *a: None",
    "import_hook": """
        import builtins
        builtins.__import__ = lambda *a, **k: torch
    """,
    "module_call": "nn.Module.__call__ = lambda self, x, *a, **k: x",
    "module_parameters": "nn.Module.named_parameters = lambda self, *a, **k: iter([])",
    "no_gradients": "torch.Tensor.backward = lambda *a, **k: None",
    "output_replaced": "sys.stdout = sys.stderr = None",
}

LIES = {
    "object_that_is_equal_to_all": """
        class Right:
            def __eq__(self, other): return True
            def __getattr__(self, name): return self
            def __call__(self, *a, **k): return self
        block.answer = lambda x: Right()
    """,
    "tensor_that_claims_equality": """
        class Right(torch.Tensor):
            @classmethod
            def __torch_function__(cls, function, types, args=(), kwargs=None):
                if function.__name__ in ("allclose", "equal", "eq", "isclose"): return True
                return super().__torch_function__(function, types, args, kwargs or {})
        block.answer = lambda x: x.as_subclass(Right)
    """,
    "tensor_without_function": """
        class Right(torch.Tensor):
            @classmethod
            def __torch_function__(cls, function, types, args=(), kwargs=None): return True
        block.answer = lambda x: x.as_subclass(Right)
    """,
    "tensor_with_a_dispatcher": """
        class Right(torch.Tensor):
            @staticmethod
            def __new__(cls, x): return torch.Tensor._make_wrapper_subclass(cls, x.shape, dtype=x.dtype)
            def __init__(self, x): pass
            @classmethod
            def __torch_dispatch__(cls, function, types, args=(), kwargs=None): return args[0]
        block.answer = lambda x: Right(x)
    """,
    "nan": "block.answer = lambda x: torch.full_like(x, float('nan'))",
    "infinity": "block.answer = lambda x: torch.full_like(x, float('inf'))",
    "zeros": "block.answer = torch.zeros_like",
    "empty": "block.answer = lambda x: x[..., :0]",
    "one_number": "block.answer = lambda x: x.sum()",
    "meta": "block.answer = lambda x: x.to('meta')",
    "sparse": "block.answer = lambda x: x.to_sparse()",
    "complex": "block.answer = lambda x: torch.complex(x, x)",
    "boolean": "block.answer = lambda x: x > 0",
    "quantised": "block.answer = lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8)",
    "nested": "block.answer = lambda x: torch.nested.nested_tensor(list(x))",
    "conjugate": "block.answer = lambda x: torch.complex(x, x).conj().imag",
    "bytes_with_odd_booleans": """
        block.answer = lambda x: torch.full(x.shape, 255, dtype=torch.uint8).view(torch.bool)
    """,
    "storage_that_is_too_short": """
        def answer(x):
            x = x.clone()
            x.untyped_storage().resize_(0)
            return x
        block.answer = answer
    """,
    "string": "block.answer = lambda x: 'passed'",
    "none": "block.answer = lambda x: None",
    "itself": "block.answer = lambda x: block",
    "endless_tuple": """
        inside = []
        inside.append(inside)
        block.answer = lambda x: inside
        while not inside: pass
    """,
    "shape_of_lies": """
        class Right(torch.Tensor):
            shape = property(lambda self: (2, 3, 16))
            def numel(self): return 1 << 40
        block.answer = lambda x: torch.zeros(1, dtype=x.dtype).as_subclass(Right)
    """,
}

CLASSES = {
    "function_that_is_no_class@import": "global TransformerBlock; TransformerBlock = lambda *a, **k: True",
    "not_a_module": """
        class TransformerBlock:
            def __init__(self, *a, **k): pass
            def __eq__(self, other): return True
    """,
    "module_that_lies_about_its_class": """
        class TransformerBlock:
            __class__ = nn.Module
            def __init__(self, *a, **k): pass
            def named_parameters(self, **k): return []
            named_buffers = named_modules = named_parameters
            def forward(self, x): return x
            __call__ = forward
            train = forward
    """,
    "signature_of_lies": """
        Right = TransformerBlock
        class Strange:
            def __repr__(self): os._exit(0)
            def __eq__(self, other): return True
        TransformerBlock.__signature__ = Strange()
    """,
    "names_with_escape_codes": """
        Right = TransformerBlock
        class TransformerBlock(Right):
            def __init__(self, *a, **k):
                super().__init__(*a, **k)
                self.register_parameter("\\x1b[2J\\ud800", nn.Parameter(torch.ones(1)))
    """,
    "names_that_are_no_names": """
        Right = TransformerBlock
        class TransformerBlock(Right):
            def named_parameters(self, *a, **k):
                yield 1, nn.Parameter(torch.ones(1))
                yield None, nn.Parameter(torch.ones(1))
    """,
    "a_million_parameters": """
        Right = TransformerBlock
        class TransformerBlock(Right):
            def named_parameters(self, *a, **k):
                one = nn.Parameter(torch.ones(1))
                return ((f"weight{n}", one) for n in range(1_000_000))
    """,
    "number_that_fights_back": """
        class Number(int):
            def __format__(self, form): os._exit(0)
            def __abs__(self): return self
            def __lt__(self, other): return True
        Right = TransformerBlock
        class TransformerBlock(Right):
            def forward(self, x, token_positions=Number(3)):
                return x
    """,
    "default_that_is_huge": """
        Right = TransformerBlock
        class TransformerBlock(Right):
            def __init__(self, d_model, num_heads, d_ff, eps=10 ** 5000, theta=float("nan"), name="x" * (1 << 22)):
                super().__init__(d_model, num_heads, d_ff)
    """,
    "right_name_from_elsewhere@import": "global TransformerBlock; from prenorm import TransformerBlock",
    "module_that_replaces_itself@import": """
        import types
        class Module(types.ModuleType):
            def __getattr__(self, name): return True
        sys.modules[__name__].__class__ = Module
        del globals()["TransformerBlock"]
    """,
    "state_of_the_driver": """
        import gc
        Right = TransformerBlock
        class TransformerBlock(Right):
            def __init__(self, *a, **k):
                super().__init__(*a, **k)
                for held in gc.get_objects():
                    if type(held).__name__ == "Driver":
                        held._blocks = {n: nn.Identity() for n in range(10)}
    """,
}

ALL = (
    submissions("printed", PRINTED)
    + submissions("replies", REPLIES)
    + submissions("patches", PATCHES)
    + submissions("lies", {f"{name}@forward": code for name, code in LIES.items()})
    + submissions("classes", CLASSES)
)
