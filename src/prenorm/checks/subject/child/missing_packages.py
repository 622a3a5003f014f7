"""What stands in for packages that are not installed: it can be imported, and raises once a block uses it."""

import abc
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Iterator
from typing import Any

INSTALL = {
    "cv2": "opencv-python",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "sklearn": "scikit-learn",
    "flash_attn": "flash-attn",
    "pytorch_lightning": "pytorch-lightning",
    "rotary_embedding_torch": "rotary-embedding-torch",
    "tensorboardX": "tensorboardX",
    "dotenv": "python-dotenv",
    "hydra": "hydra-core",
}
"""Where the name to install is another than the one to import."""
_NAMES = (
    "wandb tensorboard tensorboardX tqdm matplotlib seaborn pandas hydra omegaconf lightning pytorch_lightning "
    "datasets tiktoken tokenizers sentencepiece mlflow neptune comet_ml clearml aim rich loguru click typer fire absl "
    "psutil regex pytest submitit modal plotly scipy sklearn nltk accelerate deepspeed fairscale apex xformers "
    "flash_attn transformers einops einx jaxtyping beartype typeguard typing_extensions torchtyping ml_collections "
    "torchinfo torchvision torchmetrics torchao torchtune triton bitsandbytes peft safetensors huggingface_hub "
    "evaluate gin simple_parsing pydantic attr attrs yaml dotenv PIL cv2 requests tyro colorlog coloredlogs structlog "
    "ray rotary_embedding_torch x_transformers litgpt timm dacite humanize pynvml GPUtil fvcore thop torchsummary "
    "jsonargparse torchdata torchtext torchaudio tensorflow jax flax onnx onnxruntime h5py webdataset joblib tabulate "
    "termcolor colorama prettytable jsonlines zstandard ipdb IPython ipywidgets gradio streamlit ninja numba librosa "
    "openai sacrebleu blobfile schedulefree heavyball lion_pytorch transformer_engine liger_kernel trl vllm mpi4py "
    "streaming composer llmfoundry fla mamba_ssm causal_conv1d torchviz fancy_einsum line_profiler skimage spacy "
    "pyarrow polars duckdb boto3 fsspec sympy networkx orjson msgspec dill cloudpickle toml ftfy jieba "
    "lightning_utilities lightning_fabric litdata lit_gpt thunder torchtitan nemo megatron megablocks grouped_gemm stk "
    "flash_attn_interface sageattention natten kernels cut_cross_entropy mup dion dllogger faiss "
    "galore_torch adam_mini prodigyopt cached_path smart_open olmo_core fairseq fairseq2 espnet espnet2 iopath "
    "mmcv mmengine mmdet detectron2 diffusers open_clip clip lpips kornia albumentations imageio decord av moviepy "
    "torch_geometric torch_scatter torch_sparse torch_cluster pytorch3d e3nn rdkit Bio biotite esm openfold ase "
    "soundfile pretty_midi miditok mido music21 phonemizer encodec vocos gymnasium gym stable_baselines3 chess optuna "
    "torchdiffeq torchsde opt_einsum pyro gpytorch xgboost lightgbm statsmodels sentence_transformers hf_transfer "
    "local_attention vector_quantize_pytorch colt5_attention product_key_memory axial_positional_embedding "
    "hyper_connections ema_pytorch adam_atan2_pytorch accelerated_scan memory_profiler pytorch_memlab torch_xla "
    "intel_extension_for_pytorch optimum auto_gptq awq exllamav2 llama_cpp unsloth axolotl torchrl tensordict pyrallis "
    "draccus fastapi uvicorn flask pymongo sqlalchemy bs4 lxml unidecode inflect langid "
    "six fastcore ujson glob2 dataclasses_json torchx torchnet torchsummaryX"
)
KNOWN = frozenset(_NAMES.split())
"""Packages that exist: a file that imports one of them and never uses it in a block can be judged without."""


class MissingPackages(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for packages that are missing, while files are imported."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.asked: set[str] = set()
        """What was looked for and is not there, also where the file that asked goes on without it."""
        self._sealed: list[bool] = []

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if missing_part(name) not in self.names:
            if path is None:
                self.asked.add(name)
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _StubModule(spec.name, self._sealed)

    def exec_module(self, module: types.ModuleType) -> None:
        """There is nothing to run."""

    def stub(self, path: str) -> "_Stub":
        """What stands in for this name of a package."""
        return _stub(path, self._sealed)

    def seal(self) -> None:
        """From now on using one raises."""
        self._sealed.append(True)


def is_stub(value: Any) -> bool:
    """Whether it stands in for something of a missing package."""
    return isinstance(value, _Stub)


def stub_path(value: Any) -> str:
    """What of which missing package a value stands for, or inherits from; empty if it is a real one."""
    if isinstance(value, _StubModule):
        return value.__name__
    return value._path if isinstance(value, _Stub) else ""


class _StubModule(types.ModuleType):
    def __init__(self, name: str, sealed: list[bool]) -> None:
        super().__init__(name)
        self.__dict__["_sealed"] = sealed

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if self._sealed:
            raise not_installed(f"{self.__name__}.{name}")
        return _stub(f"{self.__name__}.{name}", self._sealed)


class NotInstalledError(ModuleNotFoundError):
    """A block uses a package that is not installed where it is judged, which is no fault of the block."""


def not_installed(path: str) -> NotInstalledError:
    """The error that says what uses which package, and how to install it."""
    top = missing_part(path)
    return NotInstalledError(f"{path} is used, and {top} is not installed here: {way_out(top)}")


def way_out(package: str) -> str:
    """How to get a package that is missing, or the file of that name that was not handed in."""
    install = f"pip install {INSTALL.get(package, package.replace('.', '-'))}"
    return (
        install
        if package in KNOWN or "." in package
        else f"{install}, or put {package}.py (or the folder {package}) beside this file if it is yours"
    )


def missing_part(name: str) -> str:
    """The package of a dotted name: its first part, or what follows a namespace that packages share, such as google."""
    package, *inner = name.split(".")
    while inner and is_namespace(sys.modules.get(package)):
        package = f"{package}.{inner.pop(0)}"
    return package


def is_namespace(module: Any) -> bool:
    """Whether it is a folder without __init__.py."""
    try:  # sys.modules holds what it was given: no module at all, at times
        return isinstance(vars(module).get("__loader__"), importlib.machinery.NamespaceLoader)
    except TypeError:
        return False


class _Stub(abc.ABCMeta):
    """A name of a missing package: it can be imported, inherited from, subscribed and used as a decorator.

    As a base class it goes with abc.ABC; with another metaclass, such as Enum's, the import ends.

    _path: what it stands for. _sealed: a list that is no longer empty once using it must raise.
    """

    _path: str
    _sealed: list[bool]

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if cls._sealed:
            raise not_installed(f"{cls._path}.{name}")
        return _stub(f"{cls._path}.{name}", cls._sealed)

    def __call__(cls, *args: Any, **keywords: Any) -> Any:
        if cls._sealed or "_path" not in vars(cls):
            raise not_installed(cls._path)
        if len(args) == 1 and not keywords and callable(args[0]):
            return args[0]  # as a decorator
        return _stub(cls._path, cls._sealed)

    def __getitem__(cls, item: Any) -> Any:
        return cls

    def __iter__(cls) -> Iterator[Any]:
        if cls._sealed:
            raise not_installed(cls._path)
        return iter(())

    def __or__(cls, other: Any) -> Any:
        return cls

    def __add__(cls, other: Any) -> Any:
        if cls._sealed:
            raise not_installed(cls._path)
        return cls

    __ror__ = __or__
    __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __add__

    def __bool__(cls) -> bool:
        if cls._sealed:
            raise not_installed(cls._path)
        return True

    def __enter__(cls) -> Any:
        return cls

    def __exit__(cls, *_: Any) -> None:
        return None


def _stub(path: str, sealed: list[bool]) -> _Stub:
    return _Stub(path.rpartition(".")[2], (), {"_path": path, "_sealed": sealed})
