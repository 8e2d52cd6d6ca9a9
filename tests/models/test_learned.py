"""Weights of learned methods: kept beside a host, found again, refused where they do not fit."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from foveate.compressors.learned import MissingWeights, untrained
from foveate.compressors.registry import make
from foveate.models import learned, load_host
from foveate.models.errors import HostError
from foveate.models.learned import WrongWeights, attach, file_of, home, read, rounded, save
from foveate.models.on_paper import paper_host
from foveate.plans.plan import Plan

KEY = ("projector", "ldpv2")
PLAN = Plan.of(projector=("ldpv2", 0.25))


@pytest.fixture
def folder(folders, tmp_path):
    """A copy of the tiny model's folder."""
    return shutil.copytree(folders(text_tower=True), tmp_path / "model")


@pytest.fixture
def bare(folder):
    return load_host(folder)


def moved(host):
    """A network that is not what pooling gives."""
    network = untrained(make(*KEY), host.widths, host.matrices()).network
    torch.nn.init.normal_(network.place.weight, std=0.2)
    return rounded(network)


def test_without_weights_the_method_is_masked_and_the_command_named(bare):
    reason = bare.supports(*KEY)
    assert reason == "ldpv2: has no weights for this host; `foveate distill METHOD --model MODEL` makes them"
    assert bare.forbids(*KEY) is None
    with pytest.raises(HostError, match="foveate distill"):
        bare.forecast(PLAN, bare.prompt_shape(5))
    with pytest.raises(MissingWeights, match="foveate distill"):
        bare.open([torch.zeros(32, 32, 3, dtype=torch.uint8).numpy()], ["left ?"]).run(PLAN)


def test_weights_saved_in_the_models_own_folder_are_found_and_run(bare, folder, tiny):
    network = moved(bare)
    assert home(bare) == folder / "foveate"
    path = save(home(bare), bare, *KEY, network, {"steps": 3})
    assert path == folder / "foveate" / "projector-ldpv2.safetensors" and learned.about(path) == {"steps": 3}
    host = load_host(folder)
    assert host.supports(*KEY) is None and not any(p.requires_grad for p in host.learned[KEY].parameters())
    p = host.open([tiny.picture(0), tiny.picture(1)], tiny.questions[:2]).run(PLAN)
    p.decode(max_new_tokens=2)
    untouched = host.open([tiny.picture(0), tiny.picture(1)], tiny.questions[:2])
    untouched.thin()
    x = torch.stack([state.x for state in untouched.tokens])
    expected = network(x.view(2, 4, 4, -1).permute(0, 3, 1, 2), (2, 2)).flatten(2).transpose(1, 2)
    assert torch.allclose(torch.stack([state.x for state in p.states["projector"]]), expected, atol=1e-5)
    for row, ledger in enumerate(p.ledger):
        assert ledger == host.forecast(PLAN, p.rows[row].shape, new_tokens=len(p.generated[row]))
        stages = {(stage, what) for stage, what, *_ in ledger.entries}
        assert ("projector", "ldpv2") in stages and ("projector", "projector") not in stages


def test_a_fresh_network_is_the_hosts_own_projector_and_average_pooling(bare, tiny):
    bare.learned[KEY] = untrained(make(*KEY), bare.widths, bare.matrices()).network
    other = Plan.of(projector=("average_pool", 0.25))
    one, two = (bare.open([tiny.picture(2)], ["left ?"]).run(plan).states["projector"][0] for plan in (PLAN, other))
    assert torch.allclose(one.x, two.x, atol=1e-5)
    assert torch.equal(one.origin, two.origin) and one.grid == two.grid == (1, 2, 2)


def test_a_file_holds_half_precision_and_what_was_rounded_before_comes_back_bit_for_bit(bare, tmp_path):
    network = moved(bare)
    path = save(tmp_path, bare, *KEY, network, {})
    assert {value.dtype for value in load_file(path).values()} == {torch.bfloat16}
    again = read(path, bare).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in network.state_dict().items())


def test_another_folder_can_be_named(bare, folder, tmp_path):
    save(tmp_path / "elsewhere", bare, *KEY, moved(bare), {})
    assert load_host(folder, learned=tmp_path / "elsewhere").supports(*KEY) is None
    assert load_host(folder).supports(*KEY) is not None
    with pytest.raises(WrongWeights, match="nowhere: no such folder"):
        load_host(folder, learned=tmp_path / "nowhere")


def test_a_half_precision_host_runs_the_network_in_its_own_numbers(bare, folder, tiny):
    save(home(bare), bare, *KEY, moved(bare), {})
    host = load_host(folder, dtype="bfloat16")
    p = host.open([tiny.picture(0)], ["left ?"]).run(PLAN)
    assert host.learned[KEY].place.weight.dtype == p.states["projector"][0].x.dtype == torch.bfloat16


def test_weights_of_another_model_are_refused_by_name_and_passed_over_at_home(bare, folder, hosts):
    path = save(home(bare), bare, *KEY, moved(bare), {})
    other = hosts(tower="siglip")
    with pytest.raises(WrongWeights, match=r"projector-ldpv2\.safetensors: is for another model \(fingerprint "):
        attach(other, path.parent)
    tensors = load_file(path)
    told = {"version": "1", "fingerprint": "0" * 64, "widths": json.dumps(None), "about": "{}"}
    save_file(tensors, path, metadata=told)
    host = load_host(folder)
    assert KEY not in host.learned
    assert "is for another model (fingerprint 000000000000" in host.supports(*KEY)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "cannot be read"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: save_file(load_file(path), path), "version None"),
        (lambda path: path.rename(path.with_name("projector-nothing.safetensors")), "no learned method 'nothing'"),
        (lambda path: path.rename(path.with_name("outside-random.safetensors")), "no learned method 'random'"),
    ],
)
def test_a_broken_file_is_one_clear_line(bare, tmp_path, damage, words):
    damage(save(tmp_path / "w", bare, *KEY, moved(bare), {}))
    (path,) = (tmp_path / "w").iterdir()
    with pytest.raises(WrongWeights, match=words) as error:
        read(path, bare)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_tensors_of_other_shapes_are_refused(bare, tmp_path):
    network = moved(bare)
    network.place = torch.nn.Conv2d(2, 2, 1)
    path = save(tmp_path, bare, *KEY, network, {})
    with pytest.raises(WrongWeights, match="its tensors are not those of ldpv2"):
        read(path, bare)


def test_home_of_the_reference_is_the_package_and_of_a_hub_model_the_cache(bare, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    bare.name = "someone/model"
    assert home(bare) == tmp_path / ".cache" / "foveate" / bare.fingerprint
    bare.name = "reference"
    assert home(bare).parts[-3:] == ("models", "reference", "learned")
    assert file_of("a", *KEY).name == "projector-ldpv2.safetensors"


def test_a_host_on_paper_has_none(folder):
    assert "has no weights" in paper_host(str(folder)).supports(*KEY)
