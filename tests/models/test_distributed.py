"""Training and saving over several processes equals one process, or is refused by name."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from prenorm import ConfigError, EncoderDecoder, EncoderDecoderConfig, ModelConfig, ModelWithLoss, TransformerLM

CONFIG = ModelConfig(vocab_size=61, d_model=16, num_layers=2, num_heads=2, d_ff=24, max_seq_len=32)
IDS = torch.randint(0, 61, (4, 9), generator=torch.Generator().manual_seed(0))
PROMPTS = [[1, 2, 3], [4, 5]]
GREEDY = {"max_new_tokens": 4, "temperature": 0}

pytestmark = [
    pytest.mark.usefixtures("shapes_unchecked"),
    pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch"),
]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    store = tmp_path_factory.mktemp("store") / "file"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def plain():
    torch.manual_seed(0)
    return TransformerLM(CONFIG)


def sharded(model, mesh, *methods):
    for part in (*model.layers, model):
        fully_shard(part, mesh=mesh)
    for method in methods:
        register_fsdp_forward_method(model, method)
    return model


def gradients(model):
    return {name.removeprefix("model."): whole(one.grad) for name, one in model.named_parameters()}


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def check_loss(trained, call):
    """The loss and its gradients are those of the plain model."""
    ours = plain()
    wanted = ours.loss(IDS[:, :-1], IDS[:, 1:])
    loss = call(IDS[:, :-1], IDS[:, 1:])
    wanted.backward()
    loss.backward()
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(gradients(trained), gradients(ours))


def test_the_loss_of_a_sharded_model_is_the_models_own_once_it_is_registered(mesh):
    model = sharded(plain(), mesh, "loss")
    check_loss(model, model.loss)


def test_a_sharded_module_whose_forward_is_the_loss_needs_no_registration(mesh):
    module = ModelWithLoss(plain())
    for part in (*module.model.layers, module):
        fully_shard(part, mesh=mesh)
    check_loss(module, module)


def test_a_sharded_model_generates_the_same_tokens_once_it_is_registered(mesh):
    wanted = plain().generate(PROMPTS, **GREEDY)
    assert sharded(plain(), mesh, "generate").generate(PROMPTS, **GREEDY) == wanted
    steps = sharded(plain(), mesh, "stream").stream(PROMPTS, **GREEDY)
    assert [list(row) for row in zip(*steps, strict=True)] == wanted


@pytest.mark.parametrize("method", ["loss", "generate", "stream"])
@pytest.mark.parametrize("parts", ["blocks and model", "model alone"])
def test_a_method_that_is_not_registered_is_refused_by_name(mesh, method, parts):
    model = sharded(plain(), mesh) if parts == "blocks and model" else fully_shard(plain(), mesh=mesh)
    given = (IDS[:, :-1], IDS[:, 1:]) if method == "loss" else (PROMPTS,)
    way_out = rf'^{method} needs whole weights, but \S+ is sharded.*register_fsdp_forward_method\(model, "{method}"\)'
    with pytest.raises(ConfigError, match=way_out):
        getattr(model, method)(*given, **({} if method == "loss" else GREEDY))
    model.unshard()
    if method != "stream":
        getattr(model, method)(*given, **({} if method == "loss" else GREEDY))


def test_blocks_that_gather_by_themselves_need_no_registration(mesh):
    model = plain()
    for block in model.layers:
        fully_shard(block, mesh=mesh)
    check_loss(model, model.loss)
    assert model.generate(PROMPTS, **GREEDY) == plain().generate(PROMPTS, **GREEDY)


def test_a_draft_beside_sharded_weights_is_refused(mesh):
    with pytest.raises(ConfigError, match="a draft and its model need whole weights"):
        sharded(plain(), mesh, "generate").generate(PROMPTS, draft=plain(), **GREEDY)


def test_an_encoder_decoder_names_what_has_to_be_registered(mesh):
    torch.manual_seed(0)
    ours = EncoderDecoder(EncoderDecoderConfig(vocab_size=61, d_model=16, num_layers=1, num_heads=2)).eval()
    model = copy.deepcopy(ours)
    for part in (*model.encoder.layers, *model.decoder.layers, model):
        fully_shard(part, mesh=mesh)
    for method, given in {
        "loss": (IDS, IDS, IDS),
        "encode": (IDS,),
        "make_cache": (IDS, 8),
        "generate": (PROMPTS,),
        "stream": (PROMPTS,),
    }.items():
        with pytest.raises(ConfigError, match=rf'^{method} needs.*register_fsdp_forward_method\(model, "{method}"\)'):
            getattr(model, method)(*given)
        register_fsdp_forward_method(model, method)
    with pytest.raises(ConfigError, match=r"^make_cache needs .* this TransformerDecoderBlock"):
        model.make_cache(IDS, 8)
    for block in model.decoder.layers:
        register_fsdp_forward_method(block, "make_cache")
    model.make_cache(IDS, 8)
    assert model.generate(PROMPTS, **GREEDY) == ours.generate(PROMPTS, **GREEDY)
    torch.testing.assert_close(model.loss(IDS, IDS, IDS), ours.loss(IDS, IDS, IDS))


def test_a_sharded_model_is_saved_whole(mesh, tmp_path):
    sharded(plain(), mesh).save_pretrained(tmp_path)
    saved = TransformerLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in plain().state_dict().items())


# Run by each of two processes: RANK, a folder.
TWO = f"""
import gc, sys, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.models.test_distributed import IDS, plain, trained

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{{folder}}/store", rank=rank, world_size=2)
from prenorm import ModelWithLoss
mine = IDS[2 * rank : 2 * rank + 2]
model = plain()
ddp = DistributedDataParallel(ModelWithLoss(model))
trained(ddp, model, mine)
if rank == 0:
    model.save_pretrained(folder + "/ddp")
module = ModelWithLoss(plain())
for part in (*module.model.layers, module):
    fully_shard(part, mesh=init_device_mesh("cpu", (2,)))
trained(module, module, mine)
module.model.save_pretrained(folder + "/fsdp")
dist.barrier()  # a process that ends before the other has heard its last word aborts
del ddp, module, model, part  # which have threads of the group's
gc.collect()
dist.destroy_process_group()
"""


def trained(loss_of, model, ids):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(ids[:, :-1], ids[:, 1:]).backward()
        optimizer.step()


@pytest.mark.long
def test_two_processes_train_and_save_as_one(tmp_path):
    workers = [
        subprocess.Popen([sys.executable, "-c", TWO, str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    ours = plain()
    trained(ours.loss, ours, IDS)
    for way in ("ddp", "fsdp"):
        theirs = TransformerLM.from_pretrained(tmp_path / way)
        torch.testing.assert_close(dict(theirs.named_parameters()), dict(ours.named_parameters()), rtol=1e-5, atol=1e-6)
